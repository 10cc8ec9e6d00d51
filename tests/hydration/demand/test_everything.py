"""Everything of a tree, for somebody who waits for it: whole trees, then what is left by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from artifactfs.git.pack import store as store_module
from artifactfs.hydration.background import sweep as sweep_module
from artifactfs.hydration.demand import flight as flight_module
from artifactfs.hydration.errors import HydrationError
from tests.e2e.delay_proxy import DelayProxy
from tests.hydration.background.test_sweep import here, wanted
from tests.hydration.cold_mount import ColdMount, cold_mount
from tests.hydration.tree_repository import TreeRepository


@pytest.fixture(autouse=True)
def small_is_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "MIN_FOR_SUBTREES", 500)
    monkeypatch.setattr(sweep_module, "PREFETCHED_BLOBS", 150)


async def everything(mount: ColdMount) -> tuple[int | None, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    mount.hydrator.start_sweep(mount.tip.tree)
    files = await mount.hydrator.prefetch_tree(
        mount.tip.tree, progress=lambda done, total: told.append((done, total))
    )
    await mount.landed()
    return files, told


def test_a_large_tree_comes_as_trees_and_then_by_name(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="none") as mount:
            with line.recording() as requests:
                files, told = await everything(mount)
            assert files == len(tree_repository.oids)
            assert here(mount, tree_repository) == set(tree_repository.oids)
            by_name = wanted(requests, tree_repository)
            assert 0 < len(by_name) < len(tree_repository.oids) / 4
            assert b"data/large.bin" in by_name  # no tree brings it
            stats = mount.hydrator.stats()
            assert stats.blobs_here == stats.blobs_total
            assert stats.bytes_here == stats.bytes_total
            assert told[-1] == (stats.blobs_total, stats.blobs_total)
            with line.recording() as requests:
                assert (await everything(mount))[0] == files
            assert [request for request in requests if request.command == "fetch"] == []

    trio.run(main)


def test_a_reader_who_comes_meanwhile_is_served(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="none") as mount:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(everything, mount)
                await trio.sleep(0.05)
                path = b"src/p2/m3/f00.py"
                blob = await mount.hydrator.open(tree_repository.oids[path], mount.context(path))
                assert blob.read(0, blob.size) == tree_repository.contents[path]
                blob.close()
            assert here(mount, tree_repository) == set(tree_repository.oids)

    trio.run(main)


def test_what_is_cancelled_asks_for_no_more(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="none") as mount:
            await trio.to_thread.run_sync(line.hold, lambda asked: asked.command == "fetch")
            with trio.move_on_after(0.2) as scope:
                await everything(mount)
            assert scope.cancelled_caught
            await trio.to_thread.run_sync(line.release)
            await mount.landed()
            with line.recording() as requests:
                await trio.sleep(0.3)
            assert [request for request in requests if request.command == "fetch"] == []

    trio.run(main)


def test_a_remote_that_goes_away_is_an_error(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="none", deadline_s=2) as mount:
            mount.hydrator.start_sweep(mount.tip.tree)
            await mount.hydrator.offered.walked()
            await trio.to_thread.run_sync(line.refuse)
            with pytest.raises(HydrationError):
                await everything(mount)

    trio.run(main)


def test_what_takes_git_long_to_index_is_counted_all_the_same(
    url: str, tree_repository: TreeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote has sent all of it; what takes its time is a process of ours on a busy machine."""
    index = store_module.write_index
    slept: list[Path] = []

    async def slow(pack: Path, path: Path) -> None:
        await index(pack, path)
        await trio.sleep(0 if slept else 6.2)
        slept.append(pack)

    monkeypatch.setattr(store_module, "write_index", slow)
    monkeypatch.setattr(flight_module, "_NOTED_AT_ONCE", 10)

    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="none", deadline_s=6.0) as mount:
            await everything(mount)
            stats = mount.hydrator.stats()
            assert stats.blobs_here == stats.blobs_total == len(set(tree_repository.oids.values()))
            assert stats.bytes_here == stats.bytes_total

    trio.run(main)


def test_the_sizes_of_what_came_are_learnt_without_the_remote(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    contents = {oid: tree_repository.contents[path] for path, oid in tree_repository.oids.items()}

    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="none") as mount:
            await everything(mount)
            with line.recording() as requests:
                await mount.until(lambda stats: stats.sizes_known == len(contents))
            stats = mount.hydrator.stats()
            assert stats.bytes_here == stats.bytes_total == sum(map(len, contents.values()))
            assert requests == []
            for oid, content in contents.items():
                assert mount.hydrator.known_size(oid) == len(content)

    trio.run(main)
