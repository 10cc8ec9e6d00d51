"""Pools: immutable object directories that forks share.

A fork must cost nothing however large its ancestor is, must survive the ancestor's deletion, and
must never lose an object to its ancestor's garbage collection. So the pack files of the ancestor
are hard-linked into a *pool*, a folder that nobody writes to again, and the fork names the pool
in ``objects/info/alternates``. The ancestor names it too, so that its own next repack drops what
the pool has. A pool lives while a row of ``repo_pools`` claims it. A second fork of an unchanged
ancestor uses the pool that is there.

A fork sees the objects its ancestor had at that moment, and none that are pushed to it later.
"""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from artifactfs.server.storage.gitdir import tree_bytes
from artifactfs.server.storage.packs import pack_files

_LINK_TRIES = 5


@dataclass(frozen=True, slots=True)
class PoolContents:
    """What a new pool holds."""

    bytes: int
    objects: int


def own_object_files(objects: Path) -> list[str]:
    """Packs (all their files) and loose objects, relative to an object directory."""
    names = [f"pack/{name}" for files in pack_files(objects).values() for name in files]
    for fan in sorted(objects.glob("[0-9a-f][0-9a-f]")):
        names.extend(f"{fan.name}/{loose.name}" for loose in sorted(fan.iterdir()))
    return names


def has_all(pool: Path, names: list[str]) -> bool:
    """True if a pool has every one of these object files."""
    return all((pool / "objects" / name).exists() for name in names)


def fill_pool(objects: Path, pool: Path) -> PoolContents:
    """Make `pool` with hard links to everything in `objects`; whole when this returns.

    A repack that runs meanwhile may replace files: then it is done again. Raises: OSError.
    """
    for attempt in range(_LINK_TRIES):
        building = pool.with_name(f"{pool.name}.{attempt}.new")
        (building / "objects" / "info").mkdir(parents=True, mode=0o700)
        (building / "objects" / "pack").mkdir(mode=0o700)
        try:
            for name in own_object_files(objects):
                target = building / "objects" / name
                target.parent.mkdir(exist_ok=True, mode=0o700)
                os.link(objects / name, target)
        except FileNotFoundError:
            shutil.rmtree(building, ignore_errors=True)
            continue
        building.rename(pool)
        sync_directory(pool.parent)
        return PoolContents(tree_bytes(pool), count_objects(pool / "objects"))
    raise OSError(f"the objects in {objects} keep changing")


def count_objects(objects: Path) -> int:
    """Objects in the packs and loose files of one object directory."""
    total = sum(_pack_objects(index) for index in (objects / "pack").glob("pack-*.idx"))
    return total + sum(1 for _ in objects.glob("[0-9a-f][0-9a-f]/*"))


def _pack_objects(index: Path) -> int:
    """The last entry of the fan-out table of a version 2 index (gitformat-pack(5))."""
    try:
        with index.open("rb") as file:
            head = file.read(8 + 256 * 4)
    except FileNotFoundError:
        return 0
    if len(head) < 8 + 256 * 4 or head[:4] != b"\xfftOc":
        return 0
    return int(struct.unpack(">I", head[-4:])[0])


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
