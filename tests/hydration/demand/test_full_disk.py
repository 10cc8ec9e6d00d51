"""The disk of the cache is full, and the network is there: files can be read all the same."""

from __future__ import annotations

import errno
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from artifactfs.hydration.demand import flight
from artifactfs.hydration.errors import HydrationFailed
from artifactfs.hydration.local import memory_only
from tests.hydration.cold_mount import ColdMount, cold_mount
from tests.hydration.tree_repository import TreeRepository

SOURCES = [b"src/p%d/m%d/f07.py" % (package, module) for package in range(8) for module in range(6)]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A state root on a file system of 16 MiB."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def fill(root: Path) -> Path:
    """Take what is free; removing the file gives it back."""
    filler = root / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


def packs(mount: ColdMount) -> list[Path]:
    return list((mount.state.shared_objects / "pack").glob("*.pack"))


def test_reads_are_served_from_memory(
    url: str,
    small: Path,
    tree_repository: TreeRepository,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flight, "STAYS_FULL_S", 0.0)
    contents = tree_repository.contents

    async def main() -> None:
        async with cold_mount(url, small) as mount:
            filler = fill(small)
            with caplog.at_level(logging.WARNING):
                for path in (*SOURCES[:5], b"data/large.bin", b"data/huge.py"):
                    assert await mount.read(path) == contents[path]
            assert packs(mount) == []
            assert "in memory only" in caplog.text
            assert not list((mount.state.shared_objects / "tmp").iterdir())
            filler.unlink()
            assert await mount.read(SOURCES[-1]) == contents[SOURCES[-1]]
            await mount.landed()
            assert packs(mount)

    trio.run(main)


def test_many_readers_at_once_are_served_from_memory(
    url: str, small: Path, tree_repository: TreeRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_only, "MAX_BYTES", 4 << 20)
    paths = [*SOURCES, b"data/large.bin", b"data/huge.py"]

    async def main() -> None:
        async with cold_mount(url, small) as mount:
            fill(small)

            async def read(path: bytes) -> None:
                assert await mount.read(path) == tree_repository.contents[path]

            async with trio.open_nursery() as nursery:
                for path in paths:
                    nursery.start_soon(read, path)

    trio.run(main)


def test_packs_that_were_not_used_for_long_make_room(
    url: str, small: Path, tree_repository: TreeRepository, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with cold_mount(url, small) as mount:
            assert await mount.read(b"data/large.bin")
            await mount.landed()
            old = packs(mount)
            assert old
            filler = fill(small)
            with caplog.at_level(logging.WARNING):
                path = SOURCES[3]
                assert await mount.read(path) == tree_repository.contents[path]
            await mount.landed()
            assert "evicted" in caplog.text
            assert packs(mount)
            assert not set(old) & set(packs(mount))
            filler.unlink()
            large = b"data/large.bin"
            assert await mount.read(large) == tree_repository.contents[large]

    trio.run(main)


def test_a_blob_that_is_too_large_for_memory_fails_as_the_disk_does(
    url: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_only, "MAX_BYTES", 1 << 20)

    async def main() -> None:
        async with cold_mount(url, small) as mount:
            fill(small)
            with pytest.raises(HydrationFailed) as failed:
                await mount.read(b"data/large.bin")
            assert failed.value.errno == errno.ENOSPC

    trio.run(main)


def test_the_sweep_does_not_download_again_and_again(url: str, small: Path) -> None:
    async def main() -> None:
        async with cold_mount(url, small, hydrate="all") as mount:
            hydrator = mount.hydrator
            await hydrator.sizes(mount.tip.tree, [mount.oid(b"data/large.bin")])
            fill(small)
            hydrator.start_sweep(mount.tip.tree)
            await mount.until(lambda stats: stats.failures > 0 and stats.sweep_state == "waiting")
            requests = hydrator.stats().requests_by_reason["sweep"]
            assert requests <= 4

    trio.run(main)
