"""Packs of a repository put together, and kept for those who still read what was replaced.

Each push makes a pack, and each git process looks at all of them. The small ones are rolled up
into one until each pack is over twice as large as all smaller ones together, as ``git repack
--geometric`` does; it cannot be used, since git before 2.41 fails there in a repository that
borrows objects (gitrepository-layout(5), ``objects/info/alternates``).

On a file system of several machines a removed file is gone for everybody, even if another machine
has it open. So what is replaced keeps a second name in the trash for a while.

Whoever replaces packs holds the repository's lock `repacking`: `gc`, and the servers after pushes.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PACK_SUFFIXES = (".pack", ".rev", ".bitmap", ".mtimes", ".keep", ".idx")
"""The index last: a pack without it does not exist for git."""
MANY_PACKS = 10
"""So many small ones are put together."""
SMALL = 256 << 20
"""Larger packs are left to `gc`."""
REPLACED_S = 3_600.0
"""What was replaced is kept this long: a clone may still be reading it."""
_REPLACED = "packs."
_NOT_ROLLED = (".keep", ".mtimes", ".bitmap")
"""Kept by somebody, unreachable, or the result of a `gc`, which is made again by the next."""
_FACTOR = 2
_LISTED = 20
_FAN_OUT = 8 + 256 * 4


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack with its index. `bytes`: of the pack."""

    name: str
    bytes: int


def repacking_lock(gitdir: Path) -> Path:
    """The lock file of whoever replaces packs."""
    return gitdir / "repacking"


def pack_files(objects: Path) -> dict[str, list[str]]:
    """The files of each of a repository's own packs, the index last; packs that are not whole are
    left out. Raises: OSError.

    A pack that takes the place of others may be missed by who reads the folder meanwhile, and so
    may those: so it is read until it says the same twice.
    """
    names = _names(objects)
    for _ in range(_LISTED):
        before, names = names, _names(objects)
        if names == before:
            break
    else:
        raise OSError(errno.EAGAIN, f"the packs in {objects} keep changing")
    found = {}
    for index in sorted(name for name in names if name.endswith(".idx")):
        files = [f"{index[:-4]}{suffix}" for suffix in PACK_SUFFIXES]
        if files[0] in names:
            found[index[:-4]] = [name for name in files if name in names]
    return found


def _names(objects: Path) -> set[str]:
    try:
        return {name for name in os.listdir(objects / "pack") if name.startswith("pack-")}
    except FileNotFoundError:
        return set()


def small_packs(objects: Path) -> list[Pack]:
    """Those that may be rolled up, the smallest first. What a pool has as well is left to `gc`,
    which removes it here: rolled up, it would be on the disk twice. Raises: OSError."""
    found = []
    for name, files in pack_files(objects).items():
        if any(f"{name}{suffix}" in files for suffix in _NOT_ROLLED):
            continue
        with suppress(FileNotFoundError):
            status = (objects / "pack" / f"{name}.pack").stat()
            if status.st_nlink == 1 and status.st_size < SMALL:
                found.append(Pack(name, status.st_size))
    return sorted(found, key=lambda pack: (pack.bytes, pack.name))


def packs_to_roll_up(packs: Sequence[Pack]) -> list[Pack]:
    """Those of `small_packs` that one pack should take the place of: none, or at least two."""
    total = count = 0
    for number, pack in enumerate(packs):
        if number and pack.bytes <= _FACTOR * total:
            count = number + 1
        total += pack.bytes
    return list(packs[:count])


def oids_of(objects: Path, pack: Pack) -> list[bytes]:
    """The objects of a pack in their order, from its index of version 2 (gitformat-pack(5)).

    Raises: OSError, ValueError.
    """
    index = (objects / "pack" / f"{pack.name}.idx").read_bytes()
    count = int.from_bytes(index[_FAN_OUT - 4 : _FAN_OUT], "big")
    offsets = array("I", index[_FAN_OUT + count * 24 :][: count * 4])  # behind oids and CRCs
    if index[:8] != b"\xfftOc\0\0\0\x02" or len(offsets) < count:
        raise ValueError(f"the index of {pack.name} is damaged")
    if sys.byteorder == "little":
        offsets.byteswap()
    starts = [_FAN_OUT + 20 * number for number in sorted(range(count), key=offsets.__getitem__)]
    return [index[start : start + 20] for start in starts]


def remove_packs(objects: Path, packs: Sequence[Pack]) -> None:
    """The index first: git then looks for the objects elsewhere."""
    for pack in packs:
        for suffix in reversed(PACK_SUFFIXES):
            (objects / "pack" / f"{pack.name}{suffix}").unlink(missing_ok=True)


@contextmanager
def kept_for_readers(objects: Path, trash: Path) -> Iterator[None]:
    """What is removed or replaced of all packs meanwhile stays in the trash. Raises: OSError."""
    place = trash / f"{_REPLACED}{os.urandom(8).hex()}"
    place.mkdir(mode=0o700)
    names = [name for files in pack_files(objects).values() for name in files]
    for name in names:
        with suppress(FileNotFoundError):
            os.link(objects / "pack" / name, place / name)
    yield
    for name in names:
        with suppress(FileNotFoundError):
            if (objects / "pack" / name).samefile(place / name):
                (place / name).unlink()
    try:
        place.rmdir()
    except OSError:  # there is something in it, from now on
        os.utime(place)


def remove_replaced(trash: Path, *, older_than: float) -> None:
    """Remove what nobody can be reading any more. `older_than`: seconds since the epoch."""
    for path in trash.glob(f"{_REPLACED}*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < older_than:
                shutil.rmtree(path, ignore_errors=True)
