"""What was changed in the mount: a log, and an SQLite database.

Every change of metadata is one record of the log (`commitlog.py`), written before the kernel gets
its reply: it survives the death of the process, and `sync` makes it survive power loss. Until it
is in the database it is in memory (`pending.py`), where every question looks first. `fold` brings
all of that into the database in one transaction (3.5 µs a file instead of 30), when `FOLD_AT`
edits have come together or nothing happens.

From time to time the database's own log, SQLite's WAL, is written back by a second connection in
a thread, so that no request waits for the disk; then our log is cut. What was folded meanwhile, a
few pages, is written back in the event loop: only then does SQLite begin the WAL again from its
start, and under a steady load a checkpoint of a thread alone never gets there.

Who may open the database is decided by a lock on the upper directory (`upper.py`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from artifactfs.errors import StateError
from artifactfs.fs.inodes import seals
from artifactfs.fs.inodes.inode import Extent, Row
from artifactfs.fs.overlay import pagesums
from artifactfs.fs.overlay.commitlog import CommitLog
from artifactfs.fs.overlay.pending import Edit, Pending, decode, delete_meta, put_meta
from artifactfs.fs.overlay.schema import APPLICATION_ID, MIGRATIONS, PAGE_SIZE
from artifactfs.paths import RepoLayout
from artifactfs.system.files import sync_path

log = logging.getLogger(__name__)

FOLD_AT = 1_000
"""Edits that are folded together: some 3 ms in the event loop."""

SHOWN = 5
"""Damaged pages that are named."""

PENDING_AT_MOST = 100 * FOLD_AT
"""Where the database takes none (a full disk): beyond, changes are refused. Some 30 MB."""

CHECKPOINT_BYTES = 4 << 20
"""The log is cut, and the WAL written back, when it has become as long as this."""

_SEGMENTS = 4
"""The same for the number of its segments: each start begins one."""

_WAL_KEPT = 16 << 20

RESERVE_BYTES = 256 << 10
"""Kept back on the disk: without it, a full disk would refuse even the removal of a file, since
that is a record as well."""

_ROW = (
    "mode, uid, gid, nlink, rdev, atime_ns, mtime_ns, ctime_ns, oid, has_data, target,"
    " base_time_ns, segment, segment_offset, segment_size, segment_crc"
)
_GET_INODE = f"SELECT {_ROW} FROM inodes WHERE ino = ?"
_GET_INODES_IN = (
    f"SELECT ino, {_ROW} FROM inodes WHERE ino IN (SELECT ino FROM dirents WHERE parent = ?)"
)
_DIRECTORIES_IN = (
    "SELECT d.name, d.ino FROM dirents d JOIN inodes i ON i.ino = d.ino"
    " WHERE d.parent = ? AND (i.mode & 61440) = 16384"
)
_SEGMENT_USE = (
    "SELECT segment, sum(segment_size) FROM inodes WHERE segment IS NOT NULL GROUP BY segment"
)
_PLACES = (
    "SELECT i.ino, segment, segment_offset, segment_size, segment_crc, x.value FROM inodes i"
    " LEFT JOIN xattrs x ON x.ino = i.ino AND x.name = ? WHERE has_data"
)
DAMAGE = (sqlite3.DatabaseError, ValueError, LookupError, struct.error)
"""What reading a damaged database or log ends in."""
_ASIDE = "-damaged-changes-"
_SEGMENT_SYNCED = "segment-synced-"
ANSWERING = "answering"
"""In `meta`: the last request of which the change was written down. It may not be answered yet; all
before it are."""
ANSWERING_BEFORE = "answering-before"
"""The same of processes before, as 64-bit numbers: requests that nobody has met again yet."""
_SEQUENCE = "sequence"
"""In `meta`: number of the last record of the log that the database contains."""


class Overlay:
    """The open overlay. One thread uses it; `sync` and `checkpoint` may run in others."""

    def __init__(self, path: Path) -> None:
        """Open what exists: bring its schema and, from the log, its contents up to date.

        Raises: StateError.
        """
        self.path = path
        if not path.exists() or path.stat().st_size == 0:
            raise damaged(path, "the file is missing or empty")
        self._pending = Pending()
        on_disk_ns = self._check_pages(path)
        try:
            self.connection = _connect(path)
            """Public for tests alone, which make it refuse to write."""
        except sqlite3.DatabaseError as error:
            raise _unusable(path, error) from error
        try:
            self._load(path)
        except BaseException:
            self.connection.close()
            raise
        self._write_sums(in_use=True, lasts=path.stat().st_mtime_ns == on_disk_ns)

    def _check_pages(self, path: Path) -> int | None:
        """The mtime (ns) of the database if it is on the disk as it is. Raises: StateError,
        OSError."""
        found = pagesums.compare(path)
        if found.wrong is not None:
            raise StateError(
                f"overlay database {path} is damaged: {found.wrong}",
                hint="restore it from a backup; written files are in 'upper' and 'small' beside it."
                f" If it was changed on purpose: rm {pagesums.sums_path(path)}",
            )
        if found.changed:
            copy = pagesums.make_unreadable(path, found.changed)
            log.error("pages %s of %s are damaged; as it was: %s", found.changed, path, copy)
        self.has_unreadable_pages = bool(found.changed) or pagesums.unreadable_pages(path)
        """Some of what it said cannot be read any more: by the checksums, or SQLite has said so."""
        self.when_unreadable: Callable[[], None] = lambda: None
        """Called when SQLite says it for the first time."""
        return path.stat().st_mtime_ns if found.lasts else None

    def _load(self, path: Path) -> None:
        try:
            _migrate(self.connection, path)
            self._execute = self.connection.execute
            self.meta = dict(self.connection.execute("SELECT key, value FROM meta"))
            self._log = CommitLog(path, int(self.meta.get(_SEQUENCE, 0)))
            for payload in self._log.replay():
                self._pending.take(list(decode(payload)))
        except DAMAGE as error:
            raise _unusable(path, error) from error
        self._set_aside()
        self._log.begin()
        self._folded = int(self.meta.get(_SEQUENCE, 0))
        self._fold_at = FOLD_AT
        self._refused = False
        self.meta = self._pending.merge_meta(self.meta)
        self.answering = 0
        """The kernel's number of the request that is being answered, where it is one that must not
        be done twice: it is written down with the change. 0: none."""
        self.answering_before: Edit | None = None
        """What is to be handed on beside it."""
        self._wal = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        self._reserve = path.with_name("reserve")
        self._reserved = False
        self._keep_reserve()
        self._checkpointing = threading.Lock()
        self._checkpoint_up_to = 0
        self.changes = 0
        """Changes so far."""
        self.fold()

    @property
    def set_right(self) -> list[Path]:
        """Parts of the log in which a wrong bit was found and corrected."""
        return self._log.set_right

    def _set_aside(self) -> None:
        """Keep a damaged log. Raises: OSError."""
        for gap in self._log.gaps:
            log.error("%s %s", gap.path, gap)
            if gap.path != self.path:
                name = gap.path.name.replace("-changes-", _ASIDE, 1)
                with contextlib.suppress(FileExistsError):
                    os.link(gap.path, gap.path.with_name(name))
            else:
                gap.path.with_name(f"{self.path.name}{_ASIDE}{gap.first}").touch()
        self.logs_set_aside = sorted(self.path.parent.glob(f"{self.path.name}{_ASIDE}*"))
        """Damaged logs: what names a written file may have been in them. While there is one,
        nothing is removed because nothing names it."""

    # Changes

    def apply(self, edits: Sequence[Edit], *, frees: bool = False) -> None:
        """Make `edits` true together, or none of them. Raises: OSError (ENOSPC, EIO).

        With `frees` (a name goes), a full disk gives up its reserve for it.
        """
        if self._pending.edits > PENDING_AT_MOST:
            self._transfer()
        if self.answering:
            edits = (*edits, put_meta(ANSWERING, self.answering))
            if self.answering_before is not None:
                edits = (*edits, self.answering_before)
        payload = b"".join([edit[4] for edit in edits])
        try:
            self._log.append(payload)
        except OSError as error:
            if not (frees and error.errno in _FULL and self._spend_reserve()):
                raise
            self._log.append(payload)
        self._pending.take(edits)
        self.changes += 1
        if self._pending.edits >= self._fold_at and len(edits) < FOLD_AT:
            self.fold()  # a switch alone is more than that: `needs_fold`, when it has answered

    def allocate_segment(self) -> int:
        """A number that no segment of small files had before. Raises: OSError."""
        number = int(self.meta.get("next_segment", 1))
        self.apply([put_meta("next_segment", number + 1)])
        self.meta["next_segment"] = number + 1
        return number

    def note_segment(self, number: int, size: int | None) -> None:
        """So many bytes of a segment of small files are on the disk; None: it is gone."""
        key = f"{_SEGMENT_SYNCED}{number}"
        if size is not None:
            self.apply([put_meta(key, size)])
            self.meta[key] = size
        elif key in self.meta:
            self.apply([delete_meta(key)], frees=True)
            del self.meta[key]

    def synced_segments(self) -> dict[int, int]:
        """What `note_segment` was told, as of the start."""
        cut = len(_SEGMENT_SYNCED)
        return {int(k[cut:]): int(v) for k, v in self.meta.items() if k.startswith(_SEGMENT_SYNCED)}

    @property
    def ino_secret(self) -> bytes:
        """The key of derived inode numbers (`inode_numbers.py`)."""
        return bytes(self.meta["ino_secret"])

    @property
    def needs_fold(self) -> bool:
        """Whether more is pending than is folded together in between."""
        return self._pending.edits >= self._fold_at

    def fold(self) -> bool:
        """Bring what is pending into the database. False where it took none; it stays pending."""
        try:
            self._transfer()
        except OSError as error:  # the log and the memory have everything
            if not self._refused:
                log.warning("the overlay's database takes nothing, and is asked again: %s", error)
            self._refused = True
            self._fold_at = self._pending.edits + FOLD_AT
            return False
        self._refused = False
        self._fold_at = FOLD_AT
        return True

    def _transfer(self) -> None:
        """Raises: OSError; then everything is as it was."""
        if not self._pending.edits:
            return
        last, execute = self._log.last, self._execute
        try:
            execute("BEGIN IMMEDIATE")
            try:
                self._pending.write_to(self.connection)
                execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_SEQUENCE, last))
                execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _os_error(error) from error
        self._pending = Pending()
        self._folded = last

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
        """Make every change survive power loss. Blocks; any thread may call it."""
        self._log.sync()

    @property
    def needs_checkpoint(self) -> bool:
        log = self._log
        return not self._reserved or log.size >= CHECKPOINT_BYTES or log.count > _SEGMENTS

    def begin_checkpoint(self) -> None:
        """What has to come before a `checkpoint`, in the event loop: 3 ms."""
        self.fold()
        self._checkpoint_up_to = self._folded
        with contextlib.suppress(OSError):  # a full disk: the log goes on in its last segment
            self._log.begin_segment()

    def checkpoint(self) -> None:
        """Write the WAL back into the database. Blocks on the disk: call it in a thread."""
        with self._checkpointing, contextlib.closing(_connect(self.path)) as connection:
            pagesums.forget(self.path)
            os.fsync(self._wal)
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if not self._reserved:
            self._keep_reserve()

    def finish_checkpoint(self) -> None:
        """The rest of it, which lets the WAL begin anew: 0.5 to 5 ms, in the event loop."""
        self._log.drop(self._checkpoint_up_to)
        with contextlib.suppress(sqlite3.Error):  # a full disk: the WAL stays, the next one does it
            self._execute("PRAGMA wal_checkpoint(PASSIVE)")

    def note_pages(self) -> None:
        """Note what the pages are now, after a checkpoint: a disk that changes one is found out
        also where the process dies before it can `close`. 1 ms a MB: call it in a thread."""
        with self._checkpointing:
            self._write_sums(in_use=True, lasts=True, sync=True)

    def _write_sums(self, *, in_use: bool, lasts: bool = False, sync: bool = False) -> None:
        try:
            if sync:  # SQLite has done it where the checkpoint wrote everything
                sync_path(self.path)
            pagesums.write(self.path, in_use=in_use, lasts=lasts)
        except OSError as error:
            log.warning("the overlay's database has no checksums: %s", error)

    def close(self) -> None:
        folded = self.fold()
        os.close(self._wal)
        pagesums.forget(self.path)
        self.connection.close()  # the last connection writes the WAL back, syncs and removes it
        whole = folded and not Path(f"{self.path}-wal").exists()
        self._log.close(folded=whole)
        if whole:
            self._write_sums(in_use=False)

    # Questions

    def row(self, ino: int) -> Row | None:
        if self._pending.knows_row(ino):
            return self._pending.row(ino)
        found = self._one(_GET_INODE, (ino,))
        return None if found is None else _row(found)

    def names(self, parent: int) -> dict[bytes, int]:
        """The dirents of `parent`: inode numbers by name, 0 where a name was removed."""
        stored = dict(self._all("SELECT name, ino FROM dirents WHERE parent = ?", (parent,)))
        return self._pending.merge_names(parent, stored)

    def rows_in(self, parent: int) -> dict[int, Row]:
        """The rows of what has a dirent in `parent`, in one query; not those still pending."""
        found = self._all(_GET_INODES_IN, (parent,))
        knows = self._pending.knows_row
        return {ino: _row(row) for ino, *row in found if not knows(ino)}

    def links(self, ino: int) -> list[tuple[int, bytes]]:
        """Every (parent, name) of `ino`."""
        stored = self._all("SELECT parent, name FROM dirents WHERE ino = ? AND ino != 0", (ino,))
        return self._pending.merge_links(ino, stored)

    def count_directories(self, parent: int) -> int:
        """How many dirents of `parent` are directories."""
        return len(self.subdirectories(parent))

    def subdirectories(self, parent: int) -> list[tuple[bytes, int]]:
        """Names and numbers of the dirents of `parent` that are directories."""
        pending = self._pending
        stored = dict(self._all(_DIRECTORIES_IN, (parent,)))
        own = pending.dirents.get(parent, {})
        rows = ((name, ino, self.row(ino)) for name, ino in own.items() if ino > 0)
        made = [(name, ino) for name, ino, row in rows if row is not None and S_ISDIR(row.mode)]
        if parent in pending.dropped:
            return made
        return [(name, ino) for name, ino in stored.items() if name not in own] + made

    def count_with_data(self) -> int:
        if self.fold():
            return int(self._one("SELECT count(*) FROM inodes WHERE has_data", ())[0])
        return len(self.inodes_with_data())

    def inodes_with_data(self) -> list[int]:
        found = {ino for (ino,) in self._all("SELECT ino FROM inodes WHERE has_data", ())}
        for ino, row in self._pending.rows():
            (found.add if row is not None and row.has_data else found.discard)(ino)
        return sorted(found)

    def segment_use(self) -> Callable[[], dict[int, int]]:
        """What gives the bytes that rows name as of now, by segment of small files.

        It reads the whole table: to be called once, in a thread. Both raise: OSError,
        sqlite3.Error.
        """
        connection = _connect(self.path)
        connection.execute("BEGIN")
        pending: Counter[int] = Counter()
        for ino, row in self._pending.rows():  # there are some where the disk is full
            found = self._one(_GET_INODE, (ino,))
            for one, sign in ((_row(found) if found else None, -1), (row, 1)):
                if one is not None and one.extent is not None:
                    pending[one.extent.segment] += sign * one.extent.size
        connection.execute("SELECT 1 FROM meta LIMIT 1").fetchone()  # holds this moment

        def use() -> dict[int, int]:
            with contextlib.closing(connection):
                pending.update(dict(connection.execute(_SEGMENT_USE)))
            return dict(pending)

        return use

    def places(self) -> list[tuple[int, Extent | None, bytes | None]]:
        """Of every written file: its number, its place in a segment, else its seal.

        As of when the database was last folded. Reads the whole table: call it in a thread.
        Raises: sqlite3.Error.
        """
        with contextlib.closing(_connect(self.path)) as connection:
            found = connection.execute(_PLACES, (seals.NAME,)).fetchall()
        return [
            (ino, None if extent[0] is None else Extent(*extent), seal)
            for ino, *extent, seal in found
        ]

    def inodes_in_segments(self, numbers: set[int]) -> list[int]:
        """Inodes whose content was there when the database was last folded.

        Reads the whole table: call it in a thread. Raises: sqlite3.Error.
        """
        with contextlib.closing(_connect(self.path)) as connection:
            found = connection.execute("SELECT ino, segment FROM inodes WHERE segment IS NOT NULL")
            return [ino for ino, segment in found if segment in numbers]

    def segments_named(self, inos: Iterable[int]) -> set[int]:
        """Segments that rows of `inos` name now, or any row that is not in the database yet."""
        rows = [self.row(ino) for ino in inos] + [row for _, row in self._pending.rows()]
        return {row.extent.segment for row in rows if row is not None and row.extent is not None}

    def has_upper(self, ino: int) -> bool:
        row = self.row(ino)
        return row is not None and row.has_upper

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        stored = dict(self._all("SELECT name, value FROM xattrs WHERE ino = ?", (ino,)))
        return self._pending.merge_xattrs(ino, stored)

    def _one(self, sql: str, parameters: tuple[Any, ...]) -> Any:
        try:
            return self._execute(sql, parameters).fetchone()
        except sqlite3.Error as error:
            raise self._reported(error) from error

    def _all(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        try:
            return self._execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._reported(error) from error

    def _reported(self, error: sqlite3.Error) -> OSError:
        log.error("overlay database failed", extra={"cause": str(error)})
        if _code(error) in _UNREADABLE and not self.has_unreadable_pages:
            self.has_unreadable_pages = True
            self.when_unreadable()
        return _os_error(error)


def read_base(path: Path) -> tuple[int, bytes | None]:
    """How many names an overlay that is not open changes, and its base commit.

    Changes nothing. Raises: StateError (it is damaged, or in use).
    """
    try:
        count, meta, pending, _ = _read(path)
    except DAMAGE as error:
        raise _unusable(path, error) from error
    commit = pending.merge_meta(meta).get("base_commit")
    return count + sum(map(len, pending.dirents.values())), commit


def _read(path: Path) -> tuple[int, dict[str, Any], Pending, CommitLog]:
    """Names that the database changes, its `meta`, and what the log has beyond it."""
    pending = Pending()
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM dirents").fetchone()
        meta = dict(connection.execute("SELECT key, value FROM meta"))
    changes = CommitLog(path, int(meta.get(_SEQUENCE, 0)))
    for payload in changes.replay():
        pending.take(list(decode(payload)))
    return count, meta, pending, changes


def faults(path: Path) -> Iterator[StateError]:
    """What the next `Overlay` would refuse or complain of, where none is open. Reads all of it and
    changes nothing. Raises: OSError."""
    if path.stat().st_size == 0:
        yield damaged(path, "the file is empty")
        return
    found = pagesums.compare(path)
    wrong = found.wrong
    if found.changed:
        pages = ", ".join(map(str, found.changed[:SHOWN])) + (
            ", …" if found.changed[SHOWN:] else ""
        )
        wrong = f"pages {pages} do not match their checksums"
    if wrong is not None:
        yield damaged(path, wrong)
        return
    try:
        *_, changes = _read(path)
    except StateError as error:
        yield error
    except DAMAGE as error:
        yield _unusable(path, error)
    else:
        hint = "restore overlay.db* from one backup; or mount it, which replays what is sound"
        yield from (StateError(f"{gap.path} {gap}", hint=hint) for gap in changes.gaps)


def is_missing(layout: RepoLayout) -> bool:
    """Whether the database is gone, but not what was kept with it."""
    path = layout.overlay_db
    if path.exists():
        return False
    if any(path.parent.glob(f"{path.name}-*")):
        return True
    folders = (layout.upper, layout.small, layout.native_upper)
    return any(files for folder in folders for *_, files in os.walk(folder))


def missing(layout: RepoLayout) -> StateError:
    """What is said of such an overlay."""
    return StateError(f"overlay database {layout.overlay_db} is missing", hint=_RESTORE)


def create_overlay(path: Path, edits: Sequence[Edit]) -> None:
    """Make a new database that contains `edits`; it appears whole or not at all.

    It is synced once, when it is complete: SQLite alone would sync it some forty times, a tenth of
    a second in which the mount is waited for.
    """
    temporary = path.with_name(path.name + ".new")
    for suffix in ("", "-journal", "-wal", "-shm"):  # of one that a crash has interrupted
        temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _migrate(connection, temporary)
        pending = Pending()
        pending.take(edits)
        connection.execute("BEGIN")
        pending.write_to(connection)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # as `_connect` wants it
    sync_path(temporary)
    os.rename(temporary, path)
    sync_path(path.parent)


def _connect(path: Path) -> sqlite3.Connection:
    """With the WAL's index in memory ("unix-excl"), not in a file that is mapped: on btrfs, a full
    disk ends a process that writes to such a mapping (SIGBUS). No other process can look at the
    database meanwhile."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?vfs=unix-excl",
        uri=True,
        isolation_level=None,
        cached_statements=256,
        timeout=5,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT}")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise damaged(path, "it is not an overlay database")
    if version > len(MIGRATIONS):
        raise StateError(
            f"overlay database {path} has schema version {version}, this program knows"
            f" {len(MIGRATIONS)}",
            hint="use the version of artifact-fs that wrote it, or a newer one",
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        run: Callable[[str], object] = connection.executescript
        run(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")


def _row(found: Sequence[Any]) -> Row:
    row = Row(*found[:-4])
    row.has_data = bool(row.has_data)
    if found[-4] is not None:
        row.extent = Extent(*found[-4:])
    return row


def _unusable(path: Path, error: Exception) -> StateError:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return StateError(
            f"overlay database {path} is in use by another program",
            hint=f"fuser {path} tells which; end it",
        )
    return damaged(path, str(error))


def damaged(path: Path, reason: str) -> StateError:
    """What is said of an overlay that cannot be used."""
    return StateError(f"overlay database {path} is damaged: {reason}", hint=_RESTORE)


_RESTORE = "restore it from a backup; written files are in 'upper' and 'small' beside it"
_ERRNOS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}


_UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR)

_FULL = (errno.ENOSPC, errno.EDQUOT)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code (https://sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _os_error(error: sqlite3.Error) -> OSError:
    """The errno that a program in the mount gets for a failure of the database."""
    number = _ERRNOS.get(_code(error), errno.EIO)
    return OSError(number, f"overlay database: {error}")
