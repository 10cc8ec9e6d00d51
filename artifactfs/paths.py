"""The one place that knows where things are on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import InvalidInput

_MOST_LINKS = 40
"""As path_resolution(7) has it."""
_REPO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_repo_name(name: str) -> str:
    """Return `name` if it can name a repository. Raises: InvalidInput."""
    if not _REPO_NAME.fullmatch(name) or ".." in name or name.endswith(".lock"):
        raise InvalidInput(
            f"{name!r} is not a usable name",
            hint="use 1 to 100 letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return name


def default_state_root() -> Path:
    """``$ARTIFACT_FS_ROOT``, else /var/lib/artifact-fs (root) or $XDG_DATA_HOME/artifact-fs."""
    given = os.environ.get("ARTIFACT_FS_ROOT")
    if given:
        return Path(given).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/artifact-fs")
    data_home = os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share"
    return Path(data_home) / "artifact-fs"


def default_mount_root() -> Path:
    """``$ARTIFACT_FS_MOUNT_ROOT``, else /mnt/artifact-fs (root) or ~/artifact-fs."""
    given = os.environ.get("ARTIFACT_FS_MOUNT_ROOT")
    if given:
        return Path(given).absolute()
    return Path("/mnt/artifact-fs") if os.geteuid() == 0 else _home() / "artifact-fs"


def _home() -> Path:
    """Raises: InvalidInput where there is none, as for the arbitrary users of some containers."""
    try:
        return Path.home()
    except RuntimeError:
        raise InvalidInput(
            "there is no home directory to keep things in",
            hint="set $HOME, or both $ARTIFACT_FS_ROOT and $ARTIFACT_FS_MOUNT_ROOT",
        ) from None


def leads_into(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or below it, also by way of symlinks.

    Never asks for anything in `directory`, so that it may be a mount that this process serves.
    """
    left = os.path.abspath(path).split("/")[:0:-1]
    place, target, links = "/", real_path(directory), 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)
            continue
        step = os.path.join(place, name)
        if step == target:
            return True
        try:
            link = os.readlink(step)
        except OSError:
            place = step
            continue
        links += 1
        if links > _MOST_LINKS:
            return False
        place = "/" if link.startswith("/") else place
        left += link.split("/")[::-1]
    return False


def real_path(mount_point: str) -> str:
    """`mount_point` as the kernel names it, without asking a file system that is mounted there.

    ``readlink`` of a mount point fails in the kernel, where ``lstat`` would wait for its process.
    """
    parent, name = os.path.split(os.path.normpath(mount_point))
    path = os.path.join(os.path.realpath(parent), name)
    try:
        os.readlink(path)
    except OSError:
        return path
    return os.path.realpath(path)


@dataclass(frozen=True, slots=True)
class RepoLayout:
    """The files of one registered repository, under ``STATE/repos/NAME``."""

    directory: Path

    @property
    def gitdir(self) -> Path:
        """A normal partial clone's gitdir; works without us."""
        return self.directory / "git"

    @property
    def overlay_db(self) -> Path:
        return self.directory / "overlay.db"

    @property
    def worker_lock(self) -> Path:
        """flock'ed by the one process that serves this repository."""
        return self.directory / "worker.lock"

    @property
    def upper(self) -> Path:
        """Data of written files: ``upper/XX/INO`` (decimal inode number)."""
        return self.directory / "upper"

    @property
    def small(self) -> Path:
        """Data of small written files: segments ``small/NUMBER``."""
        return self.directory / "small"

    @property
    def listings(self) -> Path:
        """Listings that programs have not read to their end, for the next process."""
        return self.directory / "listings"

    @property
    def lower(self) -> Path:
        """Where our own mount is while the kernel's overlayfs lies above it, at the mount point."""
        return self.directory / "lower"

    @property
    def merged(self) -> Path:
        """Where the kernel's overlayfs is put together before it takes the mount point's place."""
        return self.directory / "merged"

    @property
    def native(self) -> Path:
        """There where the kernel takes the writes (`artifactfs.fs.native.writes`)."""
        return self.directory / "native"

    @property
    def kernel_writes(self) -> Path:
        """There while `native` is, and outside of it: so its loss is noticed."""
        return self.directory / "kernel-writes"

    @property
    def native_upper(self) -> Path:
        """The upper folder of overlayfs: what was written."""
        return self.native / "upper"

    @property
    def native_work(self) -> Path:
        """overlayfs' own, on the same disk."""
        return self.native / "work"

    @property
    def credentials(self) -> Path:
        """0600, in git-credential-store format."""
        return self.directory / "credentials"

    @property
    def git_environment(self) -> Path:
        """0600: variables and settings of git that the command had which added the repository."""
        return self.directory / "git-environment"

    @property
    def git_settings(self) -> Path:
        """0600: settings that the gitdir's own config includes."""
        return self.directory / "git-settings"

    @property
    def conversion(self) -> Path:
        """The settings by which clean files are converted: those of the first mount."""
        return self.directory / "conversion.json"

    @property
    def attributes(self) -> Path:
        """The .gitattributes files that decided about clean files, by oid."""
        return self.directory / "attributes"

    @property
    def converted(self) -> Path:
        """Contents that a filter made of blobs. Not a cache: it may make others the next time."""
        return self.directory / "converted"

    @property
    def filtering(self) -> Path:
        """Where filter commands run; there while the mount is."""
        return self.directory / "filtering"

    @property
    def redirects(self) -> Path:
        """Folders of the working tree that are on this disk: ``list.json`` and their data."""
        return self.directory / "redirects"


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The files under one state root. `own_cache` is in place of the shared cache."""

    root: Path
    own_cache: Path | None = None

    @property
    def registry_db(self) -> Path:
        return self.root / "registry.db"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def keeper_socket(self) -> Path:
        """Where mounts are kept that outlive the daemon (`daemon/supervisor/keeper.py`)."""
        return self.root / "keeper.sock"

    @property
    def lock(self) -> Path:
        """flock'ed by the one daemon of this state root."""
        return self.root / "daemon.lock"

    @property
    def mount_root_file(self) -> Path:
        """Names the mount root of the daemon that runs, or ran last."""
        return self.root / "mount-root"

    def mount_root(self) -> Path:
        """Where the daemon of this state root mounts, or mounted last; before the first: will."""
        try:
            named = self.mount_root_file.read_text("utf-8", "surrogateescape").rstrip("\n")
        except OSError:
            named = ""
        return Path(named) if named else default_mount_root()

    @property
    def cache(self) -> Path:
        return self.own_cache or self.root / "cache"

    @property
    def shared_objects(self) -> Path:
        """A Git object directory with every hydrated blob; each gitdir has it as an alternate."""
        return self.cache / "objects"

    @property
    def large_blobs(self) -> Path:
        """Decompressed large blobs, ``ab/cdef…``, complete or absent."""
        return self.cache / "blobs"

    @property
    def sizes_db(self) -> Path:
        """Sizes of blobs by oid, shared by all repositories."""
        return self.cache / "sizes.db"

    @property
    def repos(self) -> Path:
        return self.root / "repos"

    @property
    def workspaces(self) -> Path:
        """A file for each workspace that is open, locked by the process that has opened it."""
        return self.root / "workspaces"

    def repo(self, name: str) -> RepoLayout:
        """The layout of repository `name`. Raises: InvalidInput."""
        return RepoLayout(self.repos / check_repo_name(name))
