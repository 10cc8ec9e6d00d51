"""Inode numbers that need no table.

A clean entry's number is derived from its parent's number and its name, so that it is the same
after a restart, after eviction, and for the writer of the primed Git index, which runs in another
process. A secret of the mount goes into it as well: 62 bits are few enough to look for two names
with one number, and whoever writes a repository chooses its names. Mounts that were made before
there was one have none, so that their numbers stay; wherever a number is looked up, parent and
name are compared (`fs/tree/tree.py`). Entries that were created or moved carry a number that the
overlay stored.

Derived numbers have bit 62 set, allocated ones do not, so the two never meet. Git's index keeps
only the low 32 bits of an inode number (``index-format``), which costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

ROOT_INO = 1
FIRST_ALLOCATED_INO = 16
"""Numbers below are the root and the virtual files of the mount."""

_DERIVED_BIT = 1 << 62
_DERIVED_MASK = _DERIVED_BIT - 1


SECRET_BYTES = 16


def derive_ino(secret: bytes, parent: int, name: bytes) -> int:
    """Return the inode number of the clean entry `name` in the directory `parent`."""
    digest = blake2b(name, digest_size=8, key=parent.to_bytes(8, "little") + secret).digest()
    return int.from_bytes(digest, "little") & _DERIVED_MASK | _DERIVED_BIT


def numbers_in(secret: bytes, parent: int) -> Callable[[bytes], int]:
    """`derive_ino` for the names of one directory, in half the time."""
    begun = blake2b(digest_size=8, key=parent.to_bytes(8, "little") + secret)

    def number(name: bytes) -> int:
        digest = begun.copy()
        digest.update(name)
        return int.from_bytes(digest.digest(), "little") & _DERIVED_MASK | _DERIVED_BIT

    return number


def is_derived(ino: int) -> bool:
    """Tell whether `ino` is a derived number (and not an allocated one)."""
    return bool(ino & _DERIVED_BIT)
