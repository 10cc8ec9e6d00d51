"""Reading cold files: what comes, in how many requests, and what is shared."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import trio

from artifactfs.hydration.demand.lanes import URGENT_LANES
from artifactfs.hydration.local.blobs import FileBlob, InPack
from tests.e2e.delay_proxy import DelayProxy, Request
from tests.git.http_backend import Backend
from tests.hydration.cold_mount import cold_mount
from tests.hydration.tree_repository import TreeRepository


def fetches(requests: list[Request]) -> list[Request]:
    return [request for request in requests if request.command == "fetch"]


def test_one_cold_read_is_one_request_that_names_the_file_first(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    path = b"src/p3/m2/f07.py"

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            with line.recording() as requests:
                assert await mount.read(path) == tree_repository.contents[path]
                assert await mount.read(path) == tree_repository.contents[path]
            asked = fetches(requests)
            assert len(asked) == 1
            assert asked[0].wants[0] == tree_repository.oids[path].hex()

    trio.run(main)


def test_a_scan_of_a_cold_tree_takes_few_requests(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            with line.recording() as requests:
                for path in mount.files():
                    if path.startswith(b"src/"):
                        assert await mount.read(path) == tree_repository.contents[path]
            assert len(fetches(requests)) <= 12

    trio.run(main)


def test_a_scan_by_many_processes_in_any_order_takes_few_requests_too(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            paths = [path for path in mount.files() if path.startswith(b"src/p1/")]
            random.Random(1).shuffle(paths)
            with line.recording() as requests:
                for pid, path in enumerate(paths):
                    assert await mount.read(path, pid) == tree_repository.contents[path]
            assert len(fetches(requests)) <= 12

    trio.run(main)


def test_random_reads_bring_little_more_than_was_read(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            with line.recording() as requests:
                for package in range(8):
                    for module in range(6):
                        path = b"src/p%d/m%d/f10.py" % (package, module)
                        assert await mount.read(path) == tree_repository.contents[path]
            await mount.landed()
            brought = {oid for request in fetches(requests) for oid in request.wants}
            assert len(brought) < 200  # of 960; the first misses still bring siblings

    trio.run(main)


def test_many_readers_of_one_blob_share_one_request(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    path = b"data/table.csv"

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            got: list[bytes] = []

            async def read(pid: int) -> None:
                got.append(await mount.read(path, pid))

            with line.recording() as requests:
                async with trio.open_nursery() as nursery:
                    for pid in range(50):
                        nursery.start_soon(read, pid)
            assert got == [tree_repository.contents[path]] * 50
            assert len(fetches(requests)) == 1

    trio.run(main)


def test_a_reader_that_goes_away_leaves_its_request_to_the_others(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    path = b"data/table.csv"

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await mount.read(b"README.md")
            line.stall()
            gone = trio.Event()
            got: list[bytes] = []

            async def impatient() -> None:
                with trio.move_on_after(0.1):
                    await mount.read(path, 1)
                gone.set()

            async def patient() -> None:
                got.append(await mount.read(path, 2))

            with line.recording() as requests:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(impatient)
                    nursery.start_soon(patient)
                    await gone.wait()
                    await trio.to_thread.run_sync(line.resume)
            assert got == [tree_repository.contents[path]]
            oid = tree_repository.oids[path].hex()
            assert sum(oid in request.wants for request in fetches(requests)) == 1

    trio.run(main)


def test_large_blobs_are_files_and_never_in_memory(
    url: str, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    path = b"data/large.bin"

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            content = tree_repository.contents[path]
            assert await mount.read(path) == content
            blob = mount.hydrator.find(mount.oid(path))
            assert isinstance(blob, FileBlob)
            assert blob.read(1_000_000, 5) == content[1_000_000:1_000_005]
            assert blob.read(len(content) - 2, 10) == content[-2:]
            assert mount.hydrator.stats().memory_bytes < 1_000_000
            blob.close()

    trio.run(main)


def test_a_large_blob_that_is_only_in_a_pack_is_unpacked_once(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    path = b"data/large.bin"

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await mount.read(path)
            await mount.landed()
            await mount.hydrator.parts.upkeep.once()
            mount.hydrator.parts.stores.large.evict(1 << 40)
            assert isinstance(mount.hydrator.find(mount.oid(path)), InPack)
            with line.recording() as requests:
                assert await mount.read(path) == tree_repository.contents[path]
            assert not fetches(requests)
            assert isinstance(mount.hydrator.find(mount.oid(path)), FileBlob)

    trio.run(main)


def test_a_second_mount_downloads_nothing_that_the_first_has(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    paths = [b"data/table.csv", b"data/large.bin", b"src/p0/m0/f00.py", b"src/p7/m5/f19.py"]

    async def main() -> None:
        async with (
            cold_mount(url, tmp_path, name="one") as first,
            cold_mount(url, tmp_path, name="two") as second,
        ):
            for path in paths:
                await first.read(path)
            await first.landed()
            await first.hydrator.parts.upkeep.once()
            with line.recording() as requests:
                for path in paths:
                    assert await second.read(path) == tree_repository.contents[path]
            assert not fetches(requests)

    trio.run(main)


def test_prefetch_brings_everything_and_reports_progress(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            seen: list[tuple[int, int]] = []
            oids = list(tree_repository.oids.values())
            await mount.hydrator.prefetch(
                oids, progress=lambda done, total: seen.append((done, total))
            )
            assert seen[-1] == (len(oids), len(oids))
            await mount.landed()
            with line.recording() as requests:
                for path, content in tree_repository.contents.items():
                    assert await mount.read(path) == content
            assert not fetches(requests)

    trio.run(main)


def test_stats_and_trace_tell_what_was_fetched_and_why(
    url: str, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    path = b"data/table.csv"

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await mount.read(path, pid=77)
            stats = mount.hydrator.stats()
            assert stats.remote == "up"
            assert stats.requests_by_reason == {"read": 1}
            assert stats.readers == ()
            assert stats.as_json()["blobs_received"] >= 1
            (record,) = mount.hydrator.trace
            assert (record.path, record.reason, record.pid) == (path, "read", 77)
            assert record.size == len(tree_repository.contents[path])

    trio.run(main)


def test_a_reader_does_not_wait_for_the_slow_requests_of_others(
    backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    slow = [b"src/p%d/m0/f00.py" % n for n in range(URGENT_LANES)]

    async def main() -> None:
        async with cold_mount(backend.url + "/tree.git", tmp_path, deadline_s=60) as mount:
            await mount.read(b"data/table.csv")
            stalled = backend.stall = threading.Event()
            try:
                async with trio.open_nursery() as nursery:
                    for number, path in enumerate(slow):
                        nursery.start_soon(mount.read, path, number)
                        await trio.to_thread.run_sync(backend.stalled.acquire)
                    backend.stall = None
                    with trio.fail_after(60):
                        got = await mount.read(b"deep/a/b/c/d/leaf.txt", 99)
                    assert got == tree_repository.contents[b"deep/a/b/c/d/leaf.txt"]
                    assert len(mount.hydrator.stats().readers) == len(slow)
                    stalled.set()
            finally:
                stalled.set()

    trio.run(main)


def test_giving_way_lasts_as_long_as_somebody_waits(
    url: str, line: DelayProxy, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            with trio.fail_after(30):
                await mount.hydrator.give_way(60)
            line.stall()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.read, b"src/p1/m1/f01.py")
                while not mount.hydrator.stats().in_flight:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                with trio.move_on_after(0.1) as scope:
                    await mount.hydrator.give_way(60)
                assert scope.cancelled_caught
                await mount.hydrator.give_way(0.1)
                await trio.to_thread.run_sync(line.resume)
                with trio.fail_after(30):
                    await mount.hydrator.give_way(60)

    trio.run(main)
