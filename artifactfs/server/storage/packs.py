"""Packs of a repository put together, and kept for those who still read what was replaced.

Each push makes a pack, and each git process looks at all of them. The small ones are rolled up
into one until each pack is over twice as large as all smaller ones together, as ``git repack
--geometric`` does; it cannot be used, since git before 2.41 fails there in a repository that
borrows objects (gitrepository-layout(5), ``objects/info/alternates``).

On a file system of several machines a removed file is gone for everybody, even if another machine
has it open. So what is replaced keeps a second name in the trash for a while.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PACK_SUFFIXES = (".pack", ".rev", ".bitmap", ".mtimes", ".keep", ".idx")
"""The index last: a pack without it does not exist for git."""
MANY_PACKS = 10
"""A repository with so many is worth a look."""
REPLACED_S = 3_600.0
"""What was replaced is kept this long: a clone may still be reading it."""
_REPLACED = "packs."
_NOT_ROLLED = (".keep", ".mtimes", ".bitmap")
"""Kept by somebody, unreachable, or the result of a `gc`, which is made again by the next."""
_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack with its index. `bytes`: of the pack."""

    name: str
    bytes: int


def list_packs(objects: Path) -> list[Pack]:
    """The repository's own packs, the smallest first; one that vanishes meanwhile is left out."""
    found = []
    for index in (objects / "pack").glob("pack-*.idx"):
        with suppress(FileNotFoundError):
            found.append(Pack(index.stem, index.with_suffix(".pack").stat().st_size))
    return sorted(found, key=lambda pack: (pack.bytes, pack.name))


def count_packs(objects: Path) -> int:
    """How many of its own a repository has."""
    try:
        return sum(name.endswith(".idx") for name in os.listdir(objects / "pack"))
    except FileNotFoundError:
        return 0


def packs_to_roll_up(objects: Path) -> list[Pack]:
    """Those that one pack should take the place of: none, or at least two."""
    packs = [
        pack
        for pack in list_packs(objects)
        if not any((objects / "pack" / f"{pack.name}{end}").exists() for end in _NOT_ROLLED)
    ]
    total = count = 0
    for number, pack in enumerate(packs):
        if number and pack.bytes <= _FACTOR * total:
            count = number + 1
        total += pack.bytes
    return packs[:count]


def remove_packs(objects: Path, packs: Sequence[Pack]) -> None:
    """The index first: git then looks for the objects elsewhere."""
    for pack in packs:
        for suffix in reversed(PACK_SUFFIXES):
            (objects / "pack" / f"{pack.name}{suffix}").unlink(missing_ok=True)


@contextmanager
def kept_for_readers(objects: Path, trash: Path, packs: Sequence[Pack]) -> Iterator[None]:
    """What disappears of `packs` in this block stays in the trash. Raises: OSError."""
    place = trash / f"{_REPLACED}{os.urandom(8).hex()}"
    place.mkdir(mode=0o700)
    names = [f"{pack.name}{suffix}" for pack in packs for suffix in PACK_SUFFIXES]
    for name in names:
        with suppress(FileNotFoundError):
            os.link(objects / "pack" / name, place / name)
    yield
    for name in names:
        if (objects / "pack" / name).exists():
            (place / name).unlink(missing_ok=True)
    with suppress(OSError):  # there is something in it
        place.rmdir()
    if place.exists():
        os.utime(place)


def replaced_packs(trash: Path, *, older_than: float) -> list[Path]:
    """What nobody can be reading any more. `older_than`: seconds since the epoch."""
    found = []
    for path in trash.glob(f"{_REPLACED}*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < older_than:
                found.append(path)
    return found


def remove_replaced(trash: Path, *, older_than: float) -> None:
    """Remove that."""
    for path in replaced_packs(trash, older_than=older_than):
        shutil.rmtree(path, ignore_errors=True)
