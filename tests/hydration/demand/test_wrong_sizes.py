"""A remote that tells wrong sizes: the content has the last word."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from artifactfs.hydration.errors import HydrationFailed
from tests.git.http_backend import Backend
from tests.hydration.cold_mount import ColdMount, cold_mount
from tests.hydration.tree_repository import TreeRepository

PATH = b"data/table.csv"
NEIGHBOURS = (b"data/small.png", b"data/huge.py", b"data/large.bin")
SOURCES = tuple(b"src/p0/m0/f%02d.py" % number for number in range(4))


async def ask(mount: ColdMount, *paths: bytes) -> None:
    """What `ls -l` in their directories does."""
    for path in paths:
        await mount.hydrator.sizes(mount.context(path).trees[0], [mount.oid(path)])


@pytest.mark.parametrize("told", [5, 23_999, 1 << 40])
def test_a_file_is_read_whatever_size_the_remote_told(
    url: str,
    backend: Backend,
    tree_repository: TreeRepository,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    told: int,
) -> None:
    oid = tree_repository.oids[PATH]
    backend.tells = {oid: told}

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await ask(mount, PATH)
            assert mount.hydrator.known_size(oid) == told
            assert await mount.read(PATH) == tree_repository.contents[PATH]
            assert mount.hydrator.known_size(oid) == 24_000
            await mount.landed()
            assert mount.hydrator.stats().remote == "up"

    with caplog.at_level(logging.WARNING):
        trio.run(main)
    lines = [line for line in caplog.messages if oid.hex() in line]
    assert len(lines) == 1
    assert f"{told} bytes" in lines[0]
    assert "24000" in lines[0]


def test_of_an_empty_file_alone_a_size_of_zero_is_believed(
    url: str, backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    backend.tells = {tree_repository.oids[PATH]: 0}

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await ask(mount, PATH)
            assert mount.hydrator.known_size(tree_repository.oids[PATH]) == 24_000

    trio.run(main)


def test_only_those_files_of_a_request_are_corrected_whose_size_is_wrong(
    url: str, backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    oids, contents = tree_repository.oids, tree_repository.contents
    wrong = {oids[SOURCES[0]]: 3, oids[SOURCES[1]]: 1 << 40, oids[PATH]: 7}
    backend.tells = wrong

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            paths = [PATH, *SOURCES, *NEIGHBOURS]
            await ask(mount, *paths)
            got: dict[bytes, bytes] = {}

            async def read(path: bytes) -> None:
                got[path] = await mount.read(path)

            async with trio.open_nursery() as nursery:
                for path in paths:
                    nursery.start_soon(read, path)
            assert got == {path: contents[path] for path in paths}
            sizes = mount.hydrator.known_sizes([oids[path] for path in paths])
            assert sizes == {oids[path]: len(contents[path]) for path in paths}

    trio.run(main)


def test_a_prefetch_brings_what_is_larger_than_the_remote_told(
    url: str, backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    """Many are read by git, which does not look at the size of one object."""
    oids, contents = tree_repository.oids, tree_repository.contents
    paths = [b"data/large.bin", *(path for path in oids if path.startswith(b"src/p0/"))]
    backend.tells = {oids[path]: 1 for path in paths}

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await ask(mount, *paths)
            await mount.hydrator.prefetch([oids[path] for path in paths])
            await mount.landed()
            for path in paths:
                assert await mount.read(path) == contents[path]
                assert mount.hydrator.known_size(oids[path]) == len(contents[path])

    trio.run(main)


def test_an_object_without_end_fails_only_those_that_ask_for_it(
    url: str, backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    """Whatever was told; and nothing is left of it on the disk."""
    backend.tells = {tree_repository.oids[PATH]: 1 << 50}

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await ask(mount, PATH)
            backend.endless = True
            with pytest.raises(HydrationFailed, match="an object of 1099511627776 bytes"):
                await mount.read(PATH)
            backend.endless = False
            await mount.landed()
            assert not list((tmp_path / "cache" / "objects" / "tmp").iterdir())
            assert await mount.read(PATH) == tree_repository.contents[PATH]

    trio.run(main)
