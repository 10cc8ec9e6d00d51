"""What was changed in the mount, in SQLite.

Every change of metadata is one transaction, committed before the kernel gets its reply (20 µs
with WAL and ``synchronous=NORMAL``: it survives the death of the process; `sync` makes it survive
power loss). The WAL is written back by a second connection in a thread, so that no request waits
for the disk: a checkpoint inside a commit would cost that commit an fsync. What was committed
meanwhile, a few pages, is written back in the event loop: only then does SQLite begin the WAL
again from its start, and under a steady load a checkpoint of a thread alone never gets there.

Who may open the database is decided by a lock on the upper directory (`upper.py`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from artifactfs.errors import StateError
from artifactfs.fs.inodes import Row
from artifactfs.fs.schema import APPLICATION_ID, MIGRATIONS, PAGE_SIZE

log = logging.getLogger(__name__)

CHECKPOINT_EVERY = 1_000
"""The WAL is written back after this many transactions, some 12 MB."""

_WAL_KEPT = 16 << 20

RESERVE_BYTES = 256 << 10
"""Kept back on the disk: without it, a full disk would refuse even the removal of a file, since
that is a transaction as well. One takes some 20 KiB of WAL."""

_ROW = (
    "mode, uid, gid, nlink, rdev, atime_ns, mtime_ns, ctime_ns, oid, has_data, target, base_time_ns"
)
_PUT_INODE = f"INSERT OR REPLACE INTO inodes (ino, {_ROW}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
_GET_INODE = f"SELECT {_ROW} FROM inodes WHERE ino = ?"
_GET_INODES_IN = (
    f"SELECT ino, {_ROW} FROM inodes WHERE ino IN (SELECT ino FROM dirents WHERE parent = ?)"
)

Statement = tuple[str, tuple[Any, ...]]


def put_inode(ino: int, row: Row) -> Statement:
    return _PUT_INODE, (
        ino,
        row.mode,
        row.uid,
        row.gid,
        row.nlink,
        row.rdev,
        row.atime_ns,
        row.mtime_ns,
        row.ctime_ns,
        row.oid,
        row.has_data,
        row.target,
        row.base_time_ns,
    )


def delete_inode(ino: int) -> Statement:
    return "DELETE FROM inodes WHERE ino = ?", (ino,)


def put_dirent(parent: int, name: bytes, ino: int) -> Statement:
    return "INSERT OR REPLACE INTO dirents VALUES (?, ?, ?)", (parent, name, ino)


def delete_dirent(parent: int, name: bytes) -> Statement:
    return "DELETE FROM dirents WHERE parent = ? AND name = ?", (parent, name)


def delete_dirents(parent: int) -> Statement:
    return "DELETE FROM dirents WHERE parent = ?", (parent,)


def delete_xattrs(ino: int) -> Statement:
    return "DELETE FROM xattrs WHERE ino = ?", (ino,)


def put_meta(key: str, value: object) -> Statement:
    return "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value)


def delete_meta(key: str) -> Statement:
    return "DELETE FROM meta WHERE key = ?", (key,)


class Overlay:
    """The open database. One thread uses it; `sync` and `checkpoint` may run in others."""

    def __init__(self, path: Path) -> None:
        """Open an existing database and bring its schema up to date. Raises: StateError."""
        self.path = path
        if not path.exists() or path.stat().st_size == 0:
            raise _damaged(path, "the file is missing or empty")
        try:
            self._connection = _connect(path)
            _migrate(self._connection, path)
            self.meta = dict(self._connection.execute("SELECT key, value FROM meta"))
        except sqlite3.DatabaseError as error:
            raise _damaged(path, str(error)) from error
        self._execute = self._connection.execute
        self._wal = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        self._reserve = path.with_name("reserve")
        self._reserved = False
        self._keep_reserve()
        self._checkpointing = threading.Lock()
        self.changes = 0
        """Transactions so far."""
        self._synced = 0
        self._checkpointed = 0

    # Changes

    def apply(self, statements: Sequence[Statement], *, frees: bool = False) -> None:
        """Run `statements` as one transaction: all or none. Raises: OSError (ENOSPC, EIO).

        With `frees` (a name goes), a full disk gives up its reserve for it.
        """
        try:
            try:
                self._transact(statements)
            except sqlite3.Error as error:
                if not (frees and _is_full(error) and self._spend_reserve()):
                    raise
                self._transact(statements)
        except sqlite3.Error as error:
            raise _os_error(error) from error
        self.changes += 1

    def _transact(self, statements: Sequence[Statement]) -> None:
        execute = self._execute
        execute("BEGIN IMMEDIATE")
        try:
            for sql, parameters in statements:
                execute(sql, parameters)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    execute("ROLLBACK")
            raise

    def _keep_reserve(self) -> None:
        """Take the reserve where there is room for it. Blocks a moment."""
        try:
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.debug("no room for the overlay's reserve: %s", error)
            self._reserve.unlink(missing_ok=True)
            self._reserved = False
        else:
            self._reserved = True

    def _spend_reserve(self) -> bool:
        if not self._reserved:
            return False
        self._reserved = False
        self._reserve.unlink(missing_ok=True)
        log.warning("the disk is full: the overlay's reserve is used to remove something")
        return True

    def sync(self) -> None:
        """Make every committed transaction survive power loss. Blocks; any thread may call it."""
        changes = self.changes
        if changes != self._synced:
            os.fsync(self._wal)
            self._synced = max(self._synced, changes)

    @property
    def needs_checkpoint(self) -> bool:
        return not self._reserved or self.changes - self._checkpointed >= CHECKPOINT_EVERY

    def checkpoint(self) -> None:
        """Write the WAL back into the database. Blocks on the disk: call it in a thread."""
        with self._checkpointing, contextlib.closing(_connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if not self._reserved:
            self._keep_reserve()

    def finish_checkpoint(self) -> None:
        """The rest of it, which lets the WAL begin anew: 0.5 to 5 ms, in the event loop."""
        self._checkpointed = self.changes
        with contextlib.suppress(sqlite3.Error):  # a full disk: the WAL stays, the next one does it
            self._execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        os.close(self._wal)
        self._connection.close()

    # Questions

    def row(self, ino: int) -> Row | None:
        found = self._one(_GET_INODE, (ino,))
        return None if found is None else _row(found)

    def names(self, parent: int) -> dict[bytes, int]:
        """The dirents of `parent`: inode numbers by name, 0 where a name was removed."""
        return dict(self._all("SELECT name, ino FROM dirents WHERE parent = ?", (parent,)))

    def rows_in(self, parent: int) -> dict[int, Row]:
        """The rows of everything that has a dirent in `parent`, in one query."""
        found = self._all(_GET_INODES_IN, (parent,))
        return {ino: _row(row) for ino, *row in found}

    def links(self, ino: int) -> list[tuple[int, bytes]]:
        """Every (parent, name) of `ino`."""
        return self._all("SELECT parent, name FROM dirents WHERE ino = ? AND ino != 0", (ino,))

    def count_directories(self, parent: int) -> int:
        """How many dirents of `parent` are directories."""
        sql = (
            "SELECT count(*) FROM dirents d JOIN inodes i ON i.ino = d.ino"
            " WHERE d.parent = ? AND (i.mode & 61440) = 16384"
        )
        return int(self._one(sql, (parent,))[0])

    def subdirectories(self, parent: int) -> list[tuple[bytes, int]]:
        """Names and numbers of the dirents of `parent` that are directories."""
        sql = (
            "SELECT d.name, d.ino FROM dirents d JOIN inodes i ON i.ino = d.ino"
            " WHERE d.parent = ? AND (i.mode & 61440) = 16384"
        )
        return self._all(sql, (parent,))

    def count_with_data(self) -> int:
        return int(self._one("SELECT count(*) FROM inodes WHERE has_data", ())[0])

    def inodes_with_data(self) -> list[int]:
        return [ino for (ino,) in self._all("SELECT ino FROM inodes WHERE has_data", ())]

    def has_data(self, ino: int) -> bool:
        found = self._one("SELECT has_data FROM inodes WHERE ino = ?", (ino,))
        return found is not None and bool(found[0])

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return dict(self._all("SELECT name, value FROM xattrs WHERE ino = ?", (ino,)))

    def _one(self, sql: str, parameters: tuple[Any, ...]) -> Any:
        try:
            return self._execute(sql, parameters).fetchone()
        except sqlite3.Error as error:
            raise _os_error(error) from error

    def _all(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        try:
            return self._execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _os_error(error) from error


def create_overlay(path: Path, statements: Iterable[Statement]) -> None:
    """Make a new database that contains `statements`; it appears whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _migrate(connection, temporary)
        connection.execute("BEGIN")
        for sql, parameters in statements:
            connection.execute(sql, parameters)
        connection.execute("COMMIT")
    os.rename(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, cached_statements=256, timeout=5, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT}")
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise _damaged(path, "it is not an overlay database")
    if version > len(MIGRATIONS):
        raise StateError(
            f"overlay database {path} has schema version {version}, this program knows"
            f" {len(MIGRATIONS)}",
            hint="use the version of artifact-fs that wrote it, or a newer one",
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        run: Callable[[str], object] = connection.executescript
        run(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")


def _row(found: Iterable[Any]) -> Row:
    row = Row(*found)
    row.has_data = bool(row.has_data)
    return row


def _damaged(path: Path, reason: str) -> StateError:
    return StateError(
        f"overlay database {path} is damaged: {reason}",
        hint="restore it from a backup; the written files are in the folder 'upper' beside it",
    )


_ERRNOS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}


def _is_full(error: sqlite3.Error) -> bool:
    return bool(getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL)


def _os_error(error: sqlite3.Error) -> OSError:
    """The errno that a program in the mount gets for a failure of the database."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = _ERRNOS.get(code, errno.EIO)
    if number == errno.EIO:
        log.error("overlay database failed", extra={"cause": str(error)})
    return OSError(number, f"overlay database: {error}")
