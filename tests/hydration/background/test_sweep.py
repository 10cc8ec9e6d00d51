"""The background sweep: order, reach, limits, and that readers overtake it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from artifactfs.hydration.background import sweep as sweep_module
from tests.e2e.delay_proxy import DelayProxy, Request
from tests.git.http_backend import Backend
from tests.hydration.cold_mount import ColdMount, cold_mount
from tests.hydration.tree_repository import TreeRepository


def wanted(requests: list[Request], repository: TreeRepository) -> list[bytes]:
    """The paths asked for, in the order of the requests."""
    names = {oid.hex(): path for path, oid in repository.oids.items()}
    return [names[oid] for r in requests if r.command == "fetch" for oid in r.wants if oid in names]


def here(mount: ColdMount, repository: TreeRepository) -> set[bytes]:
    mount.odb.refresh()
    return {path for path, oid in repository.oids.items() if mount.odb.contains(oid)}


async def swept(mount: ColdMount) -> None:
    mount.hydrator.start_sweep(mount.tip.tree)
    await mount.until(lambda stats: stats.sweep_state in ("done", "budget"))
    await mount.landed()


def test_all_brings_everything_manifests_then_source_then_binaries(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="all") as mount:
            with line.recording() as requests:
                await swept(mount)
            order = wanted(requests, tree_repository)
            assert order[:2] == [b".gitattributes", b".gitignore"]
            assert set(order[2:4]) == {b"README.md", b"package.json"}
            assert set(order[-2:]) == {b"data/large.bin", b"data/small.png"}
            assert here(mount, tree_repository) == set(tree_repository.oids)
            stats = mount.hydrator.stats()
            assert stats.blobs_here == stats.blobs_total == len(set(tree_repository.oids.values()))
            assert stats.bytes_here == stats.bytes_total
            assert stats.bytes_total == sum(map(len, set(tree_repository.contents.values())))
            assert stats.sizes_known == stats.blobs_total

    trio.run(main)


def test_source_leaves_binaries_and_large_files_alone(
    url: str, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate_max_blob=1 << 20, hydrate="source") as mount:
            await swept(mount)
            absent = set(tree_repository.oids) - here(mount, tree_repository)
            assert absent == {
                b"data/huge.py",
                b"data/large.bin",
                b"data/small.png",
                b"data/table.csv",
            }

    trio.run(main)


def test_none_asks_for_sizes_and_for_no_content(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="none") as mount:
            with line.recording() as requests:
                mount.hydrator.start_sweep(mount.tip.tree)
                total = len(set(tree_repository.oids.values()))
                await mount.until(lambda stats: stats.sizes_known == total)
            assert [r.command for r in requests if r.method == "POST"] == ["object-info"]
            assert mount.hydrator.stats().sweep_state == "off"
            for path, content in tree_repository.contents.items():
                assert mount.hydrator.known_size(mount.oid(path)) == len(content)

    trio.run(main)


def test_globs_of_the_user_come_first(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(
            url, tmp_path, hydrate="source", hydrate_first=("*.png", "src/p5/m1")
        ) as mount:
            with line.recording() as requests:
                await swept(mount)
            order = wanted(requests, tree_repository)
            first = {path for path in tree_repository.oids if path.startswith(b"src/p5/m1/")}
            first.add(b"data/small.png")
            assert set(order[: len(first)]) == first

    trio.run(main)


def test_the_budget_ends_the_sweep(
    url: str, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="source", hydrate_budget=18) as mount:
            await swept(mount)
            assert mount.hydrator.stats().sweep_state == "budget"
            assert here(mount, tree_repository) == {b".gitattributes", b".gitignore"}

    trio.run(main)


def test_a_sweep_asks_for_nothing_that_is_here(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, name="one", hydrate="all") as mount:
            await swept(mount)
        async with cold_mount(url, tmp_path, name="two", hydrate="all") as mount:
            with line.recording() as requests:
                await swept(mount)
            assert wanted(requests, tree_repository) == []
            stats = mount.hydrator.stats()
            assert stats.blobs_here == stats.blobs_total
            assert stats.bytes_here == stats.bytes_total

    trio.run(main)


def test_two_mounts_of_a_tree_that_start_together_download_it_once(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            cold_mount(url, tmp_path, name="one", hydrate="all") as one,
            cold_mount(url, tmp_path, name="two", hydrate="all") as two,
        ):
            with line.recording() as requests:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(swept, one)
                    nursery.start_soon(swept, two)
            order = wanted(requests, tree_repository)
            twice = {path for path in order if order.count(path) > 1}
            assert twice <= {b".gitattributes", b".gitignore"}
            for mount in (one, two):
                stats = mount.hydrator.stats()
                assert stats.blobs_here == stats.blobs_total
            assert not list((one.state.cache / "sweeps").iterdir())

    trio.run(main)


def test_a_sweep_whose_remote_is_away_leaves_the_tree_to_another_mount(
    url: str, backend: Backend, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    direct = f"http://127.0.0.1:{backend.port}/tree.git"

    async def main() -> None:
        async with (
            cold_mount(url, tmp_path, name="one", hydrate="all", deadline_s=1.0) as one,
            cold_mount(direct, tmp_path, name="two", hydrate="all") as two,
        ):
            await trio.to_thread.run_sync(line.refuse)
            one.hydrator.start_sweep(one.tip.tree)
            await one.until(lambda stats: stats.sweep_state == "running")
            await swept(two)
            assert here(two, tree_repository) == set(tree_repository.oids)

    trio.run(main)


def test_a_large_tree_comes_by_subtrees_in_few_requests(
    url: str,
    line: DelayProxy,
    tree_repository: TreeRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep_module, "MIN_FOR_SUBTREES", 500)
    monkeypatch.setattr(sweep_module, "SUBTREE_BLOBS", 150)

    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="all") as mount:
            with line.recording() as requests:
                await swept(mount)
            assert here(mount, tree_repository) == set(tree_repository.oids)
            fetched = [r for r in requests if r.command == "fetch"]
            trees = [r for r in fetched if b"filter blob:limit" in r.text]
            assert len(trees) == 8  # one for each package
            assert len(fetched) <= 16

    trio.run(main)


def test_a_reader_overtakes_the_sweep_on_a_slow_line(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    """The binary that would come last is there long before the source that was asked for."""

    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="all") as mount:
            line.bandwidth = 40_000
            mount.hydrator.start_sweep(mount.tip.tree)
            await mount.until(lambda stats: stats.blobs_here >= 4 and stats.in_flight > 0)
            content = await mount.read(b"data/small.png")
            assert content == tree_repository.contents[b"data/small.png"]
            assert mount.hydrator.stats().blobs_here < 800
            line.bandwidth = None

    trio.run(main)


def test_another_tree_replaces_the_first(
    url: str, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, hydrate="all") as mount:
            mount.hydrator.start_sweep(mount.tip.tree)
            await trio.lowlevel.checkpoint()
            subtree = mount.context(b"src/p2/m3/f00.py").trees[0]
            mount.hydrator.start_sweep(subtree)
            await mount.until(lambda stats: stats.sweep_state == "done")
            stats = mount.hydrator.stats()
            assert stats.blobs_here == stats.blobs_total == 20

    trio.run(main)


def test_a_reader_does_not_wait_for_the_batch_that_its_file_is_in(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    """The file is the last of a large request that crawls: an urgent one fetches it at once."""

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            hydrator = mount.hydrator
            source = [oid for path, oid in tree_repository.oids.items() if path.startswith(b"src/")]
            path = b"src/p0/m0/f00.py"
            source.remove(tree_repository.oids[path])
            wanted = [*source[:499], tree_repository.oids[path]]
            await hydrator.sizes(mount.tip.tree, wanted[:1])  # the connection is there
            line.bandwidth = 40_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hydrator.prefetch, wanted)
                await mount.until(lambda stats: stats.requests_by_reason.get("prefetch", 0) > 0)
                with line.recording() as requests:
                    assert await mount.read(path) == tree_repository.contents[path]
                assert not next(iter(hydrator.parts.control.active)).landed.is_set()
                first = [r.wants[0] for r in requests if r.command == "fetch"]
                assert tree_repository.oids[path].hex() in first
                line.bandwidth = None

    trio.run(main)
