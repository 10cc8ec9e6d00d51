"""Sizes of blobs by oid: ``STATE/cache/sizes.db``, shared by every worker of a state root.

A size comes from the remote's ``object-info``, from an object header, or from the content. The
content has the last word: it replaces a size that turns out wrong, and no answer of the remote that
comes later replaces it.

The table is ``WITHOUT ROWID`` (half the space, one B-tree look-up), which sqlite-utils cannot
write, so the schema is plain SQL here. A look-up of one oid takes 5 µs, of many 2.7 µs each (2.3 if
it were mapped into memory, of which those of a million files would be 50 MB in each worker).

Each row has the CRC-32 of its oid and size: a size that does not match is not known. (Rows of
earlier versions have none.) A database that SQLite calls damaged is put aside.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import trio

from artifactfs.damage import DamageReport

log = logging.getLogger(__name__)

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sizes(oid BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID"
)
_ADD_CHECKSUMS = "ALTER TABLE sizes ADD COLUMN crc INTEGER"
_MANY = 100
_SELECT_MANY = 500
"""Oids a query: far under SQLite's limit of bound parameters."""
_INSERT_MANY = 50_000
_MEMORY_ENTRIES = 16_384
"""Sizes kept in memory: 2.5 MB, a few thousand directories of the usual kind."""
_BUSY_S = 10.0


_BTRFS = 0x9123683E
"""``BTRFS_SUPER_MAGIC`` (linux/magic.h)."""


def journal_mode(folder: Path) -> str:
    """WAL, so that nobody waits for a writer; but not on btrfs, where a full disk ends processes
    that write to a mapped file, as the index of the WAL is (SIGBUS)."""
    found = (ctypes.c_long * 32)()
    failed = ctypes.CDLL(None).statfs(os.fsencode(folder), found)
    return "TRUNCATE" if not failed and found[0] == _BTRFS else "WAL"


def _connect(path: Path) -> sqlite3.Connection:
    """Open `path`; retries while another worker creates it. Raises: sqlite3.Error."""
    give_up = time.monotonic() + _BUSY_S
    mode = journal_mode(path.parent)
    while True:
        connection = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            # The change of the mode does not go through SQLite's busy handler.
            connection.execute("PRAGMA synchronous=OFF")  # an empty table is worth no waiting
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.execute("PRAGMA cache_size=-1024")
            connection.execute(_SCHEMA)
            _add_checksums(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        except sqlite3.Error:
            connection.close()
            raise


def _open(path: Path) -> sqlite3.Connection:
    """As `_connect`; a damaged database is put aside, since every size can be had again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        log.warning("%s is damaged and starts anew: %s", path, error)
        _put_aside(path)
        return _connect(path)


def _put_aside(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(path.with_name(path.name + ".damaged"))


def _in_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute(_SCHEMA)
    connection.execute(_ADD_CHECKSUMS)
    return connection


def _add_checksums(connection: sqlite3.Connection) -> None:
    """Another process may be at it. Raises: sqlite3.Error."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(sizes)")}
    if "crc" not in columns:
        try:
            connection.execute(_ADD_CHECKSUMS)
        except sqlite3.OperationalError as error:
            if "duplicate column" not in str(error):
                raise


def checksum(oid: bytes, size: int) -> int:
    """What the row of `oid` keeps of its size."""
    return zlib.crc32(b"%d" % size, zlib.crc32(oid))


def _sound(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[bytes, int]]:
    for oid, size, crc in rows:
        if crc is not None and crc == checksum(oid, size):
            yield oid, size


def _chunks(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class SizeStore:
    """Known sizes in bytes, by oid. Look-ups are synchronous; bulk writes go to a thread."""

    def __init__(self, path: Path, damage: DamageReport | None = None) -> None:
        """Open or create the database. Where the disk refuses (it is full), sizes are kept in
        memory: a mount needs them, and they can be had again."""
        self._damage = DamageReport() if damage is None else damage
        self._path: Path | None = path
        self._inode = 0
        try:
            self._reader = _open(path)
            self.writer = _open(path)
            self._inode = os.stat(path).st_ino
        except (OSError, sqlite3.OperationalError) as error:
            log.warning("sizes are kept in memory until the next start: %s", error)
            self._path = None
            self._reader = self.writer = _in_memory()  # SQLite lets threads take turns
        self._refused = False
        self._write_lock = trio.Lock()
        self._memory: dict[bytes, int] = {}
        self._unsaved: dict[bytes, int] = {}

    def get(self, oid: bytes) -> int | None:
        size = self._memory.get(oid)
        if size is None:
            size = self._unsaved.get(oid)
        if size is None:
            rows = list(self._query("SELECT oid, size, crc FROM sizes WHERE oid=?", (oid,)))
            if not rows:
                return None
            size = rows[0][1]
            self._keep(oid, size)
        return size

    def get_many(self, oids: Iterable[bytes], *, keep: bool = True) -> dict[bytes, int]:
        """Those of `oids` whose size is known; one query for each 500 that memory lacks.

        `keep` them in memory: they will be asked for again.
        """
        found: dict[bytes, int] = {}
        absent: list[bytes] = []
        for oid in oids:
            size = self._memory.get(oid)
            if size is None:
                size = self._unsaved.get(oid)
            if size is None:
                absent.append(oid)
            else:
                found[oid] = size
        if len(absent) >= _MANY and self._is_empty():
            return found
        for chunk in _chunks(absent, _SELECT_MANY):
            marks = ",".join("?" * len(chunk))
            query = f"SELECT oid, size, crc FROM sizes WHERE oid IN ({marks})"
            for oid, size in self._query(query, chunk):
                found[oid] = size
                if keep:
                    self._keep(oid, size)
        return found

    def _is_empty(self) -> bool:
        """As before the first mount of a state root: then none of thousands need be looked for."""
        try:
            return self._reader.execute("SELECT 1 FROM sizes LIMIT 1").fetchone() is None
        except sqlite3.Error:
            return False  # said when they are looked for

    def _query(self, sql: str, parameters: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
        """Nothing where the disk fails: then sizes are not known."""
        try:
            rows = self._reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            if not self._refused:
                log.warning("sizes cannot be read: %s", error)
            self._refused = True
            if not isinstance(error, sqlite3.OperationalError):
                self._start_anew(str(error))
            return iter(())
        return _sound(rows)

    def _start_anew(self, why: str) -> None:
        """The database is damaged. Connections of threads that still use it end by themselves."""
        if self._path is None:
            return
        try:
            if os.stat(self._path).st_ino == self._inode:  # else another process was faster
                _put_aside(self._path)
            self._reader, self.writer = _open(self._path), _open(self._path)
            self._inode = os.stat(self._path).st_ino
        except (OSError, sqlite3.Error) as error:
            log.warning("sizes are kept in memory until the next start: %s", error)
            self._path = None
            self._reader = self.writer = _in_memory()
        else:
            self._refused = False
            self._damage.mended(self._path, f"is damaged: {why}", "it was made anew: it is a cache")

    def lacking(self, oids: Sequence[bytes]) -> list[bytes]:
        """Those of `oids` whose size is not known, in their order."""
        known = self.get_many(oids)
        return [oid for oid in oids if oid not in known]

    def put(self, oid: bytes, size: int) -> None:
        """Learn one size now; it is written with the next `add_many` or `flush`."""
        if self._memory.get(oid) == size:
            return
        self._keep(oid, size)
        self._unsaved[oid] = size

    async def add_many(self, sizes: Mapping[bytes, int], *, keep: bool = True) -> None:
        """Learn many sizes; they are in the database when this returns. Blocks on the disk only.

        What `put` has learnt and nobody has written yet stays as it is. `keep` as in `get_many`.
        Raises: sqlite3.Error.
        """
        for oid, size in islice(sizes.items(), _MEMORY_ENTRIES // 4 if keep else 0):
            self._keep(oid, self._unsaved.get(oid, size))
        async with self._write_lock:
            unsaved, self._unsaved = self._unsaved, {}
            try:
                rows = iter([*sizes.items(), *unsaved.items()])
                while chunk := list(islice(rows, _INSERT_MANY)):
                    await trio.to_thread.run_sync(partial(self._write, chunk))
            except BaseException:
                self._unsaved = unsaved | self._unsaved
                raise

    async def flush(self) -> None:
        """Write what `put` learned. Raises: sqlite3.Error."""
        if self._unsaved:
            await self.add_many({})

    @property
    def unsaved(self) -> int:
        return len(self._unsaved)

    def close(self) -> None:
        """Write what is left, as far as the disk takes it, then close. Blocks on the disk."""
        if self._unsaved:
            try:
                self._write(list(self._unsaved.items()))
            except sqlite3.Error as error:
                log.warning("sizes could not be written: %s", error)
            self._unsaved = {}
        self._reader.close()
        self.writer.close()

    def _write(self, rows: list[tuple[bytes, int]]) -> None:
        connection = self.writer
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(
                "INSERT INTO sizes(oid, size, crc) VALUES(?, ?, ?)"
                " ON CONFLICT(oid) DO UPDATE SET size=excluded.size, crc=excluded.crc"
                " WHERE size<>excluded.size OR crc IS NOT excluded.crc",
                ((oid, size, checksum(oid, size)) for oid, size in sorted(rows)),
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _keep(self, oid: bytes, size: int) -> None:
        memory = self._memory
        if len(memory) >= _MEMORY_ENTRIES:
            for old in list(islice(memory, _MEMORY_ENTRIES // 4)):
                del memory[old]
        memory[oid] = size
