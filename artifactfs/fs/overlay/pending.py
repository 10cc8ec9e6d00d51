"""Changes of the overlay that are not in its database yet, and how they are written down.

An `Edit` is one absolute change: "inode 7 is this", "(parent, name) is that number". Edits of one
record of the log (`commitlog.py`) happen together. `Pending` holds what the newest edits say by
key, so a file that is created, written, stamped and renamed reaches the database once, and one
that is removed soon after never does. Questions are answered from here before the database.

An edit is written as a byte for its kind and fixed fields in little-endian order, after them byte
strings with their length. Kinds and fields are never changed once released; new kinds are added.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from artifactfs.fs.inodes.inode import Extent, Row

ABSENT = -1
"""Instead of the number of a dirent: there is none. (0: a name of the base that was removed.)"""

_PUT_INODE, _DROP_INODE, _DIRENT, _META, _XATTR = range(1, 6)

_INODE = struct.Struct("<BQIIIIQqqqqB")
_HAS_DATA, _HAS_OID, _HAS_TARGET, _HAS_EXTENT, _HAS_CRC = 1, 2, 4, 8, 16
_EXTENT = struct.Struct("<QQQ")
_CRC = struct.Struct("<I")
_DROP = struct.Struct("<BQ")
_NAMED = struct.Struct("<BQqB")  # the number is that of the dirent, or the length of the value
_META_HEAD = struct.Struct("<BBBi")
_TEXT, _NUMBER, _BYTES = range(3)

Edit = tuple[int, int, bytes, Any, bytes]
"""(kind, number of the inode or parent, name, value, the edit as it is written down)."""

_PUT_ROW = (
    "INSERT OR REPLACE INTO inodes (ino, mode, uid, gid, nlink, rdev, atime_ns, mtime_ns,"
    " ctime_ns, oid, has_data, target, base_time_ns, segment, segment_offset, segment_size,"
    " segment_crc) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)


def put_inode(ino: int, row: Row) -> Edit:
    oid, target, extent = row.oid, row.target, row.extent
    flags = row.has_data | (oid is not None) << 1 | (target is not None) << 2
    if extent is not None:
        flags |= _HAS_EXTENT | (_HAS_CRC if extent.crc is not None else 0)
    encoded = _INODE.pack(
        _PUT_INODE,
        ino,
        row.mode,
        row.uid,
        row.gid,
        row.nlink,
        row.rdev,
        row.atime_ns,
        row.mtime_ns,
        row.ctime_ns,
        row.base_time_ns,
        flags,
    )
    if oid is not None:
        encoded += _short(oid)
    if target is not None:
        encoded += len(target).to_bytes(4, "little") + target
    if extent is not None:
        encoded += _EXTENT.pack(extent.segment, extent.offset, extent.size)
        if extent.crc is not None:
            encoded += _CRC.pack(extent.crc)
    return _PUT_INODE, ino, b"", None, encoded


def drop_inode(ino: int) -> Edit:
    """Its row, its extended attributes, and of a directory all dirents go."""
    return _DROP_INODE, ino, b"", None, _DROP.pack(_DROP_INODE, ino)


def put_dirent(parent: int, name: bytes, ino: int) -> Edit:
    return _DIRENT, parent, name, ino, _NAMED.pack(_DIRENT, parent, ino, len(name)) + name


def put_meta(key: str, value: int | bytes) -> Edit:
    written = key.encode()
    kind, data = _BYTES, value
    if isinstance(data, int):
        kind, data = _NUMBER, b"%d" % data
    head = _META_HEAD.pack(_META, len(written), kind, len(data))
    return _META, 0, written, value, head + written + data


def delete_meta(key: str) -> Edit:
    written = key.encode()
    return _META, 0, written, None, _META_HEAD.pack(_META, len(written), _TEXT, ABSENT) + written


def put_xattr(ino: int, name: bytes, value: bytes) -> Edit:
    return _XATTR, ino, name, value, _NAMED.pack(_XATTR, ino, len(value), len(name)) + name + value


def delete_xattr(ino: int, name: bytes) -> Edit:
    return _XATTR, ino, name, None, _NAMED.pack(_XATTR, ino, ABSENT, len(name)) + name


def _short(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def decode(payload: bytes) -> Iterator[Edit]:
    """The edits of one record. Raises: ValueError, struct.error for what is none."""
    at = 0
    while at < len(payload):
        edit = _DECODERS[payload[at]](payload, at)
        yield edit
        at += len(edit[4])


def _decode_inode(payload: bytes, at: int) -> Edit:
    ino, flags, end = _INODE.unpack_from(payload, at)[1], payload[at + _INODE.size - 1], at
    end += _INODE.size
    if flags & _HAS_OID:
        end += 1 + payload[end]
    if flags & _HAS_TARGET:
        end += 4 + int.from_bytes(payload[end : end + 4], "little")
    if flags & _HAS_EXTENT:
        end += _EXTENT.size
    if flags & _HAS_CRC:
        end += _CRC.size
    return _PUT_INODE, ino, b"", None, payload[at:end]


def _decode_drop(payload: bytes, at: int) -> Edit:
    return drop_inode(_DROP.unpack_from(payload, at)[1])


def _decode_dirent(payload: bytes, at: int) -> Edit:
    _, parent, ino, length = _NAMED.unpack_from(payload, at)
    begin = at + _NAMED.size
    return put_dirent(parent, payload[begin : begin + length], ino)


def _decode_meta(payload: bytes, at: int) -> Edit:
    _, length, kind, size = _META_HEAD.unpack_from(payload, at)
    begin = at + _META_HEAD.size
    key = payload[begin : begin + length].decode()
    if size == ABSENT:
        return delete_meta(key)
    data = payload[begin + length : begin + length + size]
    return put_meta(key, int(data) if kind == _NUMBER else data)


def _decode_xattr(payload: bytes, at: int) -> Edit:
    _, ino, size, length = _NAMED.unpack_from(payload, at)
    begin = at + _NAMED.size
    name = payload[begin : begin + length]
    if size == ABSENT:
        return delete_xattr(ino, name)
    return put_xattr(ino, name, payload[begin + length : begin + length + size])


_DECODERS = {
    _PUT_INODE: _decode_inode,
    _DROP_INODE: _decode_drop,
    _DIRENT: _decode_dirent,
    _META: _decode_meta,
    _XATTR: _decode_xattr,
}


def decode_row(encoded: bytes) -> Row:
    """The row in an edit that was made by `put_inode`."""
    _, _, mode, uid, gid, nlink, rdev, atime, mtime, ctime, base, flags = _INODE.unpack_from(
        encoded
    )
    oid = target = None
    at = _INODE.size
    if flags & _HAS_OID:
        oid = encoded[at + 1 : at + 1 + encoded[at]]
        at += 1 + len(oid)
    if flags & _HAS_TARGET:
        end = at + 4 + int.from_bytes(encoded[at : at + 4], "little")
        target = encoded[at + 4 : end]
        at = end
    extent = None
    if flags & _HAS_EXTENT:
        crc = _CRC.unpack_from(encoded, at + _EXTENT.size)[0] if flags & _HAS_CRC else None
        segment, offset, size = _EXTENT.unpack_from(encoded, at)
        extent = Extent(segment, offset, size, crc)
    has_data = bool(flags & _HAS_DATA)
    return Row(
        mode, uid, gid, nlink, rdev, atime, mtime, ctime, oid, has_data, target, base, extent
    )


class Pending:
    """What the edits since the last `write_to` say, by key. None as a value: it is gone."""

    __slots__ = ("_rows", "_xattrs", "dirents", "dropped", "edits", "meta", "places")

    def __init__(self) -> None:
        self._rows: dict[int, bytes | None] = {}
        self.dirents: dict[int, dict[bytes, int]] = {}
        """By parent and name: number, 0 or `ABSENT`."""
        self.places: dict[int, set[tuple[int, bytes]]] = {}
        """The dirents of an inode, of those in `dirents`."""
        self.dropped: set[int] = set()
        """Inodes of which nothing in the database is valid any more, dirents below included."""
        self._xattrs: dict[int, dict[bytes, bytes | None]] = {}
        self.meta: dict[str, int | bytes | None] = {}
        self.edits = 0

    def take(self, edits: Sequence[Edit]) -> None:
        self.edits += len(edits)
        for kind, number, name, value, encoded in edits:
            if kind == _PUT_INODE:
                self._rows[number] = encoded
            elif kind == _DIRENT:
                self._set_dirent(number, name, value)
            elif kind == _DROP_INODE:
                self._drop(number)
            elif kind == _META:
                self.meta[name.decode()] = value
            else:
                self._xattrs.setdefault(number, {})[name] = value

    def _set_dirent(self, parent: int, name: bytes, ino: int) -> None:
        names = self.dirents.get(parent)
        if names is None:
            names = self.dirents[parent] = {}
        before = names.get(name, 0)
        if before > 0:
            self.places[before].discard((parent, name))
        names[name] = ino
        if ino > 0:
            self.places.setdefault(ino, set()).add((parent, name))

    def _drop(self, ino: int) -> None:
        self._rows[ino] = None
        self._xattrs.pop(ino, None)
        self.dropped.add(ino)
        for name, child in self.dirents.pop(ino, {}).items():
            if child > 0:
                self.places[child].discard((ino, name))

    # Questions

    def knows_row(self, ino: int) -> bool:
        return ino in self._rows

    def row(self, ino: int) -> Row | None:
        encoded = self._rows.get(ino)
        return None if encoded is None else decode_row(encoded)

    def rows(self) -> Iterator[tuple[int, Row | None]]:
        return ((ino, self.row(ino)) for ino in self._rows)

    def merge_names(self, parent: int, stored: dict[bytes, int]) -> dict[bytes, int]:
        """The dirents of `parent`, where the database has `stored`."""
        names = {} if parent in self.dropped else stored
        for name, ino in self.dirents.get(parent, {}).items():
            if ino == ABSENT:
                names.pop(name, None)
            else:
                names[name] = ino
        return names

    def merge_links(self, ino: int, stored: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """The places of `ino`, where the database has `stored`."""
        kept = [
            (parent, name)
            for parent, name in stored
            if parent not in self.dropped and name not in self.dirents.get(parent, ())
        ]
        return kept + sorted(self.places.get(ino, ()))

    def merge_xattrs(self, ino: int, stored: dict[bytes, bytes]) -> dict[bytes, bytes]:
        values = {} if ino in self.dropped else stored
        for name, value in self._xattrs.get(ino, {}).items():
            if value is None:
                values.pop(name, None)
            else:
                values[name] = value
        return values

    def merge_meta(self, stored: dict[str, Any]) -> dict[str, Any]:
        merged = {**stored, **self.meta}
        return {key: value for key, value in merged.items() if value is not None}

    # Into the database

    def write_to(self, connection: sqlite3.Connection) -> None:
        """Execute everything; the caller has begun a transaction. Raises: sqlite3.Error."""
        many = connection.executemany
        dropped = [(ino,) for ino in self.dropped]
        many("DELETE FROM inodes WHERE ino = ?", dropped)
        many("DELETE FROM xattrs WHERE ino = ?", dropped)
        many("DELETE FROM dirents WHERE parent = ?", dropped)
        many(_PUT_ROW, self._row_parameters())
        gone, there = [], []
        for parent, names in self.dirents.items():
            for name, ino in names.items():
                if ino == ABSENT:
                    gone.append((parent, name))
                else:
                    there.append((parent, name, ino))
        many("DELETE FROM dirents WHERE parent = ? AND name = ?", gone)
        many("INSERT OR REPLACE INTO dirents VALUES (?, ?, ?)", there)
        for ino, values in self._xattrs.items():
            for name, value in values.items():
                if value is None:
                    connection.execute("DELETE FROM xattrs WHERE ino = ? AND name = ?", (ino, name))
                else:
                    connection.execute(
                        "INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?)", (ino, name, value)
                    )
        for key, setting in self.meta.items():
            if setting is None:
                connection.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, setting))

    def _row_parameters(self) -> Iterator[tuple[Any, ...]]:
        for ino, row in self.rows():
            if row is not None:
                yield (
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
                    *(row.extent or (None, None, None, None)),
                )
