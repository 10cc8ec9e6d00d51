"""The registered repositories of one state root: ``STATE/registry.db``.

SQLite through sqlite-utils, with a rollback journal: a database in WAL mode cannot even be read on
a full disk, as it needs files beside it. Several processes use it at once (the daemon and any
number of commands), so every change is one statement or one immediate transaction, and nothing is
cached here. `PRAGMA user_version` is the schema version.

Each row has the CRC-32 of what it says. A damaged row concerns its repository alone: it is listed
as one that cannot be served, and all others are served.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from artifactfs.config import RepoSettings
from artifactfs.errors import CorruptData, NameTaken, NotRegistered, StateError

BUSY_TIMEOUT_S = 10.0
SQLITE_PATH_LIMIT = 500
"""SQLite opens no file whose path is longer than 512 bytes with the suffixes of its journals."""

# Each entry brings the schema from version index to index + 1.
_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE repos (
        name TEXT PRIMARY KEY,
        settings TEXT NOT NULL,
        enabled INTEGER NOT NULL DEFAULT 1,
        created REAL NOT NULL
    )
    """,
    # CRC-32 of the settings; NULL where an earlier version wrote them last.
    "ALTER TABLE repos ADD COLUMN checksum INTEGER",
    # When it was mounted first; NULL before that.
    "ALTER TABLE repos ADD COLUMN mounted REAL",
)
SCHEMA_VERSION = len(_MIGRATIONS)


@dataclass(frozen=True, slots=True)
class Registration:
    """One row: `enabled` says whether the daemon mounts it; `created` and `mounted` (for the first
    time) are in seconds of the epoch.

    A relative `settings.mount_point` means: below the mount root of the daemon.
    """

    settings: RepoSettings
    enabled: bool
    created: float
    mounted: float | None = None
    damaged: StateError | None = None
    """What is wrong with the row: `settings` are then only a name."""

    @property
    def name(self) -> str:
        return self.settings.name


class Registry:
    """An open registry. Raises: StateError (unusable, newer), CorruptData (damaged)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():  # on a disk that cannot be written any more it can be read
                path.touch(mode=0o600)  # sqlite3 would make it 0644
            connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as error:
            hint = "run as the user who owns the state root, or choose another with --state-root"
            if len(os.fsencode(path)) >= SQLITE_PATH_LIMIT:
                hint = f"choose a state root whose path is well below {SQLITE_PATH_LIMIT} bytes"
            reason = error.strerror if isinstance(error, OSError) else error
            raise StateError(f"cannot open {path}: {reason}", hint=hint) from error
        self._db = connection
        try:
            with self._reported():
                self._migrate(connection)
        except BaseException:
            connection.close()
            raise

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Writes nothing where the schema is this version's: most who open it only read."""
        with suppress(sqlite3.OperationalError):  # in use by another version: the next time, then
            connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=FULL")
        if _version(connection) == SCHEMA_VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)
            if version > SCHEMA_VERSION:
                raise StateError(
                    f"{self._path} was written by a newer version ({version} > {SCHEMA_VERSION})",
                    hint="upgrade artifactfs, or use another --state-root",
                )
            for step in _MIGRATIONS[version:]:
                connection.execute(step)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def add(self, settings: RepoSettings, *, enabled: bool = True, mounted: bool = False) -> None:
        """Register a repository; a damaged row of that name is replaced. Raises: AlreadyExists."""
        row = {
            "name": settings.name,
            "settings": settings.to_json(),
            "enabled": int(enabled),
            "created": (now := time.time()),
            "mounted": now if mounted else None,
            "checksum": checksum(settings.to_json()),
        }
        try:
            with self._reported():
                damaged = any(one.damaged and one.name == settings.name for one in self.all())
                verb = "REPLACE" if damaged else "INSERT"
                columns = ", ".join(row)
                values = ", ".join(f":{column}" for column in row)
                self._db.execute(f"{verb} INTO repos ({columns}) VALUES ({values})", row)
        except sqlite3.IntegrityError as error:
            raise name_taken(settings.name) from error

    def get(self, name: str, *, whole: bool = True) -> Registration:
        """Raises: NotRegistered; if it has to be `whole`, StateError where its row is damaged."""
        with self._reported():
            rows = self._rows("SELECT * FROM repos WHERE name = ?", name)
        if not rows:
            raise not_registered(name)
        found = read_row(self._path, rows[0])
        if whole and found.damaged is not None:
            raise found.damaged
        return found

    def all(self) -> list[Registration]:
        """Every repository, by name, those of damaged rows included."""
        with self._reported():
            rows = self._rows("SELECT * FROM repos ORDER BY name")
        return [read_row(self._path, row) for row in rows]

    def _rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        cursor = self._db.execute(query, values)
        columns = [column[0] for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor]

    def update(self, settings: RepoSettings) -> None:
        """Replace the settings of a registered repository. Raises: NotRegistered."""
        self._change(
            settings.name,
            "UPDATE repos SET settings = :settings, checksum = :checksum WHERE name = :name",
            settings=settings.to_json(),
            checksum=checksum(settings.to_json()),
        )

    def set_enabled(self, name: str, enabled: bool) -> None:
        """Whether the daemon mounts it. Raises: NotRegistered."""
        statement = "UPDATE repos SET enabled = :enabled WHERE name = :name"
        self._change(name, statement, enabled=int(enabled))

    def note_mounted(self, name: str) -> None:
        """From now on its files are there. Raises: NotRegistered."""
        statement = "UPDATE repos SET mounted = coalesce(mounted, :now) WHERE name = :name"
        self._change(name, statement, now=time.time())

    def remove(self, name: str) -> None:
        """Raises: NotRegistered."""
        self._change(name, "DELETE FROM repos WHERE name = :name")

    def _change(self, name: str, statement: str, **values: object) -> None:
        with self._reported():
            cursor = self._db.execute(statement, {"name": name, **values})
            changed = cursor.rowcount
        if not changed:
            raise not_registered(name)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn what SQLite says about the file into an error that names it."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.OperationalError as error:
            raise StateError(
                f"cannot use {self._path}: {error}",
                hint="artifact-fs doctor says whether the disk is full or the file not yours",
            ) from error
        except sqlite3.DatabaseError as error:
            raise CorruptData(
                f"{self._path} is damaged: {error}",
                hint=f"stop the daemon, mv {shlex.quote(str(self._path))}{{,.damaged}}, start it,"
                " and run add-repo again with each name and remote; their data is kept",
            ) from error


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def checksum(settings: str) -> int:
    """What a row keeps of its settings."""
    return zlib.crc32(settings.encode())


def read_row(path: Path, row: Mapping[str, Any]) -> Registration:
    """The registration in a row of the registry at `path`."""
    name = str(row["name"])
    try:
        text = str(row["settings"])
        if row.get("checksum") not in (None, checksum(text)):
            raise ValueError("it does not match its checksum")
        settings = RepoSettings.from_json(text)
        if settings.name != name:
            raise ValueError(f"it is called {name!r} and says {settings.name!r}")
        enabled, created = bool(row["enabled"]), float(row["created"])
        return Registration(settings, enabled, created, row.get("mounted"))
    except (ValueError, TypeError, KeyError) as error:
        damaged = StateError(
            f"{path}: the row of {name!r} is damaged ({error})",
            hint=f"artifact-fs add-repo --name {shlex.quote(name)} with the same remote and options"
            " as before: its data is kept",
        )
        nothing = RepoSettings(name=name, remote="", mount_point=name)
        return Registration(nothing, False, 0.0, damaged=damaged)


def not_registered(name: str) -> NotRegistered:
    return NotRegistered(
        f"no repository named {name!r} is registered",
        hint="artifact-fs list-repos shows the registered ones",
    )


def name_taken(name: str) -> NameTaken:
    return NameTaken(
        f"a repository named {name!r} is registered already",
        hint=f"choose another --name, or remove it first: artifact-fs remove-repo --name {name}",
    )
