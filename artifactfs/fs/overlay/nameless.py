"""Files and directories that are in use and have no name any more.

Their rows go with their last name, and nothing else on the disk would tell what they are. While
another process may go on with the mount they are kept in the overlay's `meta`, as a setting of each
in the record that removes the name, until the kernel lets go of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from artifactfs.fs.inodes.inode import Row
from artifactfs.fs.overlay.pending import Edit, decode_row, delete_meta, put_inode, put_meta

_PREFIX = "nameless-"
_HEAD = struct.Struct("<QH")


class Nameless(NamedTuple):
    """What is kept of one. `parent` and `name` were its last ones: conversions go by them."""

    ino: int
    parent: int
    name: bytes
    row: Row


def keep(ino: int, parent: int, name: bytes, row: Row) -> Edit:
    head = _HEAD.pack(parent, len(name))
    return put_meta(f"{_PREFIX}{ino}", head + name + put_inode(ino, row)[4])


def let_go(ino: int) -> Edit:
    return delete_meta(f"{_PREFIX}{ino}")


def kept(meta: Mapping[str, Any]) -> Iterator[Nameless]:
    """All that are in the `meta` of an overlay."""
    for key, value in meta.items():
        if key.startswith(_PREFIX):
            parent, length = _HEAD.unpack_from(value)
            name = value[_HEAD.size : _HEAD.size + length]
            row = decode_row(value[_HEAD.size + length :])
            yield Nameless(int(key[len(_PREFIX) :]), parent, name, row)
