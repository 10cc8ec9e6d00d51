"""What an administrator can set, and where everything lies in the data folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

MiB = 1024 * 1024
GiB = 1024 * MiB


class NameRule(StrEnum):
    """Which names namespaces and repositories may have; all are 3 to 63 characters long."""

    DEFAULT = "default"
    """a-z, 0-9 and hyphens, starting with a letter or digit."""
    STRICT = "strict"
    """a-z and hyphens, starting with a letter."""
    EXTENDED = "extended"
    """Letters, digits, ``.``, ``_`` and ``-``, compared without case."""


_NAMES: Mapping[NameRule, re.Pattern[str]] = {
    NameRule.DEFAULT: re.compile(r"[a-z0-9][a-z0-9-]{2,62}"),
    NameRule.STRICT: re.compile(r"[a-z][a-z-]{2,62}"),
    NameRule.EXTENDED: re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}"),
}


NAME_HINTS: Mapping[NameRule, str] = {
    NameRule.DEFAULT: "A name has 3 to 63 characters: a-z, 0-9 and hyphens",
    NameRule.STRICT: "A name has 3 to 63 characters: a-z and hyphens",
    NameRule.EXTENDED: "A name has 3 to 63 characters: letters, digits, '.', '_' and '-'",
}


def name_is_valid(name: str, rule: NameRule) -> bool:
    """True if `name` may name a namespace or a repository under `rule`."""
    if not _NAMES[rule].fullmatch(name):
        return False
    return ".." not in name and not name.lower().endswith((".git", ".lock"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that hold for everybody. Sizes are bytes, times seconds."""

    control_requests: int = 2_000
    git_requests: int = 2_000
    window_s: float = 10.0
    repo_bytes: int = 10 * GiB
    account_bytes: int = 1024 * GiB
    control_body_bytes: int = 1 * MiB
    fetch_body_bytes: int = 64 * MiB
    held_bytes: int = 1 * MiB
    """The largest blob that the content API holds in memory; git streams what is larger."""
    diff_bytes: int = 8 * MiB
    content_streams: int = 8
    """How many larger ones are sent at once."""
    git_processes: int = field(default_factory=lambda: 8 * (os.cpu_count() or 1))
    git_queue_s: float = 300.0
    """How long a request waits for its turn before it is told 503."""
    git_time_s: float = 3_600.0
    git_memory_bytes: int = 2 * GiB
    """Of one git process: a pack of 15 KB can stand for an object of gigabytes."""
    client_idle_s: float = 60.0
    """How long a client may neither send what it announced nor take what it asked for."""
    import_time_s: float = 3_600.0
    import_wait_s: float = 2.0
    """How long the answer to an import or fork waits for the work to end."""


@dataclass(frozen=True, slots=True)
class DataLayout:
    """The files of one data folder. Names in it are made by the server, never by a client."""

    root: Path

    @property
    def metadata_db(self) -> Path:
        return self.root / "metadata.db"

    @property
    def events_db(self) -> Path:
        return self.root / "events.db"

    @property
    def git_config(self) -> Path:
        """The one Git configuration file that every Git process of the server reads."""
        return self.root / "gitconfig"

    @property
    def database_id(self) -> Path:
        """There if the database is not in this folder: the id that it has, too."""
        return self.root / "database-id"

    @property
    def hooks(self) -> Path:
        """The hook by which git asks before it moves a ref, where there are several servers."""
        return self.root / "hooks"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def clean(self) -> Path:
        """There while no server runs and the last one left nothing undone."""
        return self.root / "clean"

    @property
    def repos(self) -> Path:
        return self.root / "repos"

    @property
    def pools(self) -> Path:
        """Immutable object directories that forks share, one directory for each pool."""
        return self.root / "pools"

    @property
    def trash(self) -> Path:
        """Directories on their way out."""
        return self.root / "trash"

    @property
    def open(self) -> Path:
        """Marks of what is being written to (`open_marks`)."""
        return self.root / "open"

    def gitdir(self, repo_id: str) -> Path:
        """The bare gitdir of the repository with that id."""
        return self.repos / repo_id[:2] / f"{repo_id}.git"

    def pool(self, pool_id: str) -> Path:
        return self.pools / pool_id

    def prepare(self) -> None:
        """Make the folders that are missing, private to the owner."""
        for directory in (self.root, self.repos, self.pools, self.trash):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made by somebody else (`mkdir /srv/git`), or by a version before.
        for directory in (self.root, self.repos, self.pools, self.trash, self.hooks, self.open):
            _close(directory, 0o700)
        for file in (self.metadata_db, self.events_db, self.git_config):
            _close(file, 0o600)


def _close(path: Path, mode: int) -> None:
    """Let nobody but the owner have what is at `path`, if there is anything."""
    if path.exists() and path.stat().st_mode & 0o077:
        path.chmod(mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything `artifacts-server serve` was told."""

    layout: DataLayout
    database: URL | None = None
    """PostgreSQL; None: files in the data folder."""
    public_url: str | None = None
    """Origin in the remotes that are handed out; None: that of each request."""
    names: NameRule = NameRule.DEFAULT
    limits: Limits = Limits()
    allow_private_networks: bool = False
    """Let imports and webhooks reach loopback, link-local and private addresses, and http."""
    access_log: Path | None = None
    log_oids: bool = False
    secure_cookies: bool = False
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the REST and the Git routes; ``*``: all."""
    drain_s: float = 0.0
    """How long requests are still taken after SIGTERM, while /healthz says no."""
    stop_s: float = 30.0
    """How long transfers may go on after SIGTERM."""
