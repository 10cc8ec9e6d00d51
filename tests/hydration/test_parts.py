"""The parts of hydration that are plain data: order, queue, memory, large files, inventory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.hydration.background.turn import SweepTurn
from artifactfs.hydration.demand.queue import WantQueue
from artifactfs.hydration.errors import HydrationFailed
from artifactfs.hydration.local.blobs import FileBlob, MemoryBlob
from artifactfs.hydration.local.cache import MemoryCache
from artifactfs.hydration.local.large_blobs import LargeBlobStore
from artifactfs.hydration.order.inventory import PackedOids, TreeInventory, bundles, partition
from artifactfs.hydration.order.priority import Priority, classify, compile_globs

FILE = 0o100644


@pytest.mark.parametrize(
    ("path", "mode", "size", "expected"),
    [
        (b".gitignore", FILE, 10, Priority.GIT),
        (b"deep/down/.gitattributes", FILE, None, Priority.GIT),
        (b"package.json", FILE, None, Priority.MANIFEST),
        (b"web/yarn.lock", FILE, None, Priority.MANIFEST),
        (b"Cargo.toml", FILE, None, Priority.MANIFEST),
        (b"tools/README.md", FILE, None, Priority.MANIFEST),
        (b".github/workflows/ci.yml", FILE, None, Priority.MANIFEST),
        (b"link", 0o120000, None, Priority.MANIFEST),
        (b"src/main.rs", FILE, 100, Priority.SOURCE),
        (b"docs/guide.rst", FILE, None, Priority.SOURCE),
        (b"bin/run", 0o100755, None, Priority.SOURCE),
        (b"data/table.csv", FILE, None, Priority.OTHER),
        (b"COPYING-NOTES", FILE, None, Priority.OTHER),
        (b"logo.PNG", FILE, 5, Priority.LARGE),
        (b".github/logo.png", FILE, 5, Priority.LARGE),
        (b"src/generated.py", FILE, 9 << 20, Priority.LARGE),
        (b"odd\xff.py", FILE, None, Priority.SOURCE),
    ],
)
def test_every_file_has_a_class(
    path: bytes, mode: int, size: int | None, expected: Priority
) -> None:
    assert classify(path, mode, size) is expected


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.png", b"a/b/c.png", True),
        ("*.png", b"a/b/c.pngx", False),
        ("docs", b"docs/a/b.txt", True),
        ("docs", b"src/docs/b.txt", True),
        ("/docs", b"src/docs/b.txt", False),
        ("src/*.c", b"src/a.c", True),
        ("src/*.c", b"src/x/a.c", False),
        ("src/**/*.c", b"src/x/y/a.c", True),
        ("src/**/*.c", b"src/a.c", True),
        ("file?.[ch]", b"x/file1.h", True),
        ("file?.[!c]", b"x/file1.c", False),
        ("a+b.txt", b"a+b.txt", True),
    ],
)
def test_globs_of_the_user(glob: str, path: bytes, matches: bool) -> None:
    pattern = compile_globs([glob])
    assert pattern is not None
    assert bool(pattern.match(path)) is matches
    assert compile_globs([]) is None


def test_the_queue_has_each_oid_once_and_the_urgent_first() -> None:
    async def main() -> None:
        queue = WantQueue()
        low = queue.join(b"a" * 20, Priority.PREFETCH, size=10)
        queue.join(b"b" * 20, Priority.PREFETCH, size=10)
        assert queue.join(b"a" * 20, Priority.EXPLICIT) is low
        assert queue.lengths()[Priority.EXPLICIT] == 1
        assert queue.lengths()[Priority.PREFETCH] == 1
        taken = queue.take(tuple(Priority), max_wants=5, max_bytes=100)
        assert [want.oid[:1] for want in taken] == [b"a", b"b"]
        assert not queue.has(tuple(Priority))
        assert queue.get(b"a" * 20) is low
        low.readers += 1
        queue.finish(low, error=HydrationFailed("no"))
        assert low.error is not None
        assert queue.get(b"a" * 20) is None
        queue.finish(low, data=b"x")
        assert low.data is None  # the first outcome stays

    trio.run(main)


def test_content_is_kept_only_for_a_reader_that_takes_it() -> None:
    async def main() -> None:
        queue = WantQueue()
        sized = queue.join(b"a" * 20, Priority.EXPLICIT)
        read = queue.join(b"b" * 20, Priority.EXPLICIT)
        sized.readers += 1  # a `stat` that only a download can answer
        read.readers += 1
        read.takers += 1
        queue.finish(sized, data=b"x")
        queue.finish(read, data=b"x")
        assert sized.finished
        assert sized.data is None
        assert read.data == b"x"

    trio.run(main)


def test_a_batch_is_bounded_by_wants_and_bytes_but_never_empty() -> None:
    async def main() -> None:
        queue = WantQueue()
        for number in range(10):
            queue.join(bytes([number]) * 20, Priority.PREFETCH, size=100)
        lanes = (Priority.PREFETCH,)
        assert len(queue.take(lanes, max_wants=3, max_bytes=1_000)) == 3
        assert len(queue.take(lanes, max_wants=10, max_bytes=250)) == 2
        assert len(queue.take(lanes, max_wants=10, max_bytes=1)) == 1

    trio.run(main)


def test_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    cache = MemoryCache(10_000)
    for number in range(100):
        cache.put(bytes([number]) * 20, b"x" * 800)
        cache.get(bytes([0]) * 20)
    assert cache.used_bytes <= 10_000
    assert cache.get(bytes([0]) * 20) is not None
    assert cache.get(bytes([1]) * 20) is None
    assert cache.get(bytes([99]) * 20) is not None
    cache.put(b"big" * 7, b"x" * 9_000)
    assert cache.get(b"big" * 7) is None
    cache.clear()
    assert (len(cache), cache.used_bytes) == (0, 0)


def test_blobs_read_like_files(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10
    (tmp_path / "f").write_bytes(content)
    on_disk = FileBlob(os.open(tmp_path / "f", os.O_RDONLY))
    for blob in (MemoryBlob(content), on_disk):
        assert blob.size == len(content)
        assert blob.read(0, 10_000) == content
        assert blob.read(100, 7) == content[100:107]
        assert blob.read(len(content) - 1, 7) == content[-1:]
        assert blob.read(len(content), 7) == b""
        blob.close()
        blob.close()


def test_eviction_passes_by_blobs_that_are_open_and_takes_the_oldest(tmp_path: Path) -> None:
    async def main() -> None:
        store = LargeBlobStore(tmp_path / "blobs")
        oids = [bytes([number]) * 20 for number in range(4)]
        for number, oid in enumerate(oids):
            (tmp_path / "spool").write_bytes(b"x" * 1_000)
            store.adopt(oid, tmp_path / "spool")
            (tmp_path / "spool").unlink()
            await store.publish(oid)
            os.utime(store.path_of(oid), (1_000 + number, 1_000 + number))
        held = store.open(oids[1])
        assert isinstance(held, FileBlob)
        os.utime(store.path_of(oids[1]), (1_001, 1_001))
        assert store.total_bytes() == 4_000
        assert store.evict(2_000) == 2_000
        left = [oid for oid in oids if store.size(oid) is not None]
        assert left == [oids[1], oids[3]]
        assert held.read(0, 10) == b"x" * 10
        held.close()
        assert store.evict(1 << 30) == 2_000

    trio.run(main)


def test_a_large_blob_has_its_name_only_when_it_is_on_the_disk(tmp_path: Path) -> None:
    async def main() -> None:
        store = LargeBlobStore(tmp_path / "blobs")
        other = LargeBlobStore(tmp_path / "blobs")
        spooled = tmp_path / "spool"
        spooled.write_bytes(b"y" * 5_000)
        oid = b"o" * 20
        store.adopt(oid, spooled)
        spooled.unlink()
        mine = store.open(oid)
        assert isinstance(mine, FileBlob)
        assert mine.size == 5_000
        assert other.open(oid) is None
        await store.publish(oid)
        theirs = other.open(oid)
        assert isinstance(theirs, FileBlob)
        assert store.unpublished() == []
        mine.close()
        theirs.close()
        old = store.temporary()
        old.write_bytes(b"left over")
        os.utime(old, (time.time() - 7_200,) * 2)
        store.remove_stale()
        assert not old.exists()

    trio.run(main)


def test_a_large_blob_that_two_requests_brought_is_kept_once(tmp_path: Path) -> None:
    async def main() -> None:
        store = LargeBlobStore(tmp_path / "blobs")
        oid = b"o" * 20
        for _ in range(2):
            spooled = tmp_path / "spool"
            spooled.write_bytes(b"y" * 5_000)
            store.adopt(oid, spooled)
            spooled.unlink()
        unpacked = store.temporary()
        unpacked.write_bytes(b"y" * 5_000)
        store.adopt_temporary(oid, unpacked)
        assert len(list(store.directory.iterdir())) == 1
        await store.publish(oid)
        assert store.total_bytes() == 5_000
        assert not list(store.directory.glob("tmp-*"))

    trio.run(main)


def test_packed_oids_are_a_sequence() -> None:
    oids = PackedOids()
    for number in range(5):
        oids.append(bytes([number]) * 20)
    assert len(oids) == 5
    assert oids[3] == b"\x03" * 20
    assert list(oids.slice(3, 10)) == [b"\x03" * 20, b"\x04" * 20]


def without(here: set[bytes], oids: list[bytes]) -> list[bytes]:
    return [oid for oid in oids if oid not in here]


def test_an_inventory_of_thousands_counts_each() -> None:
    async def main() -> None:
        oids = [hashlib.sha1(b"%d" % number).digest() for number in range(4_321)]
        inventory = TreeInventory(b"t" * 20)
        for oid in oids:
            inventory.add(oid, Priority.SOURCE)
        await inventory.finish()
        for divisor in (3, 7):  # what was here may be gone
            here = {oid for oid in oids if oid[19] % divisor == 0}
            await inventory.count(partial(without, here))
            assert inventory.here == len(here)
            assert inventory.present() == sorted(here)
            assert inventory.absent() == sorted(set(oids) - here)

    trio.run(main)


def test_a_count_keeps_what_arrives_between_its_steps(tmp_path: Path) -> None:
    """Of 5,000 blobs, in a count whose first step takes 4,000 of them."""
    git = ["git", "-C", os.fspath(tmp_path), "-c", "fastimport.unpackLimit=1"]
    subprocess.run([*git, "init", "-q", "--bare"], check=True)
    contents = [b"%d\n" % number for number in range(5_000)]
    stream = b"".join(b"blob\ndata %d\n%s" % (len(text), text) for text in contents)
    subprocess.run([*git, "fast-import", "--quiet"], input=stream, check=True)
    packs, away = tmp_path / "objects/pack", tmp_path / "away"
    packs.rename(away)
    packs.mkdir()
    oids = sorted(hashlib.sha1(b"blob %d\0%s" % (len(c), c)).digest() for c in contents)
    inventory, odb = TreeInventory(b"t" * 20), ObjectDatabase(tmp_path)
    steps: list[int] = []

    def missing(chunk: list[bytes]) -> list[bytes]:
        if steps:
            inventory.note_here(oids[0], 3)
            for pack in sorted(away.iterdir(), reverse=True):  # the index last: then it is one
                pack.rename(packs / pack.name)
        steps.append(len(chunk))
        return odb.missing_sorted(chunk)

    async def main() -> None:
        for oid in oids:
            inventory.add(oid, Priority.SOURCE)
        await inventory.finish()
        await inventory.count(missing)

    trio.run(main)
    assert steps == [4_000, 1_000]
    assert inventory.present() == [oids[0], *oids[4_000:]]


def test_an_inventory_counts_what_is_here_once() -> None:
    async def main() -> None:
        inventory = TreeInventory(b"t" * 20)
        oids = {bytes([number]) * 20 for number in range(10)}
        for oid in sorted(oids):
            inventory.add(oid, Priority.SOURCE)
        inventory.add(bytes([5]) * 20, Priority.LARGE)  # once more, elsewhere
        await inventory.finish()
        assert (len(inventory.order), inventory.total) == (10, 10)
        assert inventory.remaining(Priority.LARGE) == 0
        present = bytes([3]) * 20
        await inventory.count(lambda chunk: [oid for oid in chunk if oid != present])
        inventory.note_size(present, 50)
        assert (inventory.here, inventory.here_bytes, inventory.total_bytes) == (1, 50, 50)
        inventory.note_here(bytes([4]) * 20, 7)
        inventory.note_here(bytes([4]) * 20, 7)
        inventory.note_here(b"z" * 20, 7)
        assert (inventory.here, inventory.here_bytes, inventory.total_bytes) == (2, 57, 57)
        assert inventory.sizes_known == 2
        inventory.note_size(present, 60)
        assert (inventory.here_bytes, inventory.total_bytes) == (67, 67)

    trio.run(main)


def test_a_partition_has_no_tree_twice() -> None:
    inventory = TreeInventory(b"r" * 20)
    for name, parent, blobs in (
        (b"r", -1, 1_000),
        (b"a", 0, 600),
        (b"b", 0, 300),
        (b"c", 0, 5),
        (b"d", 1, 350),
        (b"e", 1, 240),
        (b"f", 2, 290),
    ):
        inventory.directories.add(name * 20, parent, blobs)
    chosen = partition(inventory, max_blobs=400, min_blobs=100)
    assert {oid[:1]: blobs for oid, blobs in chosen.items()} == {b"b": 300, b"d": 350, b"e": 240}


@pytest.mark.parametrize(
    ("blobs", "requests"),
    [
        ([], []),
        ([100], [1]),
        ([100] * 3, [1, 1, 1]),
        ([100] * 40, [10, 10, 10, 10]),
        ([4_000] * 25, [7, 7, 7, 4]),  # 30,000 files at most
        ([30_000, 100, 100, 29_900], [1, 2, 1]),
    ],
)
def test_trees_are_asked_for_together(blobs: list[int], requests: list[int]) -> None:
    trees = {number.to_bytes(20, "big"): count for number, count in enumerate(blobs)}
    found = bundles(trees, most=30_000, at_least=4)
    assert [len(some) for some in found] == requests
    assert [tree for some in found for tree in some] == list(trees)


def test_who_waits_for_a_turn_and_asks_again_does_not_spin(tmp_path: Path) -> None:
    async def came() -> None:
        pass

    async def main() -> None:
        tree = b"t" * 20
        one, two = (SweepTurn(tmp_path, after_wait=came, wake=lambda: None) for _ in range(2))
        async with trio.open_nursery() as nursery:
            for turn in (one, two):
                nursery.start_soon(turn.run)
                turn.want(tree)
                await trio.testing.wait_all_tasks_blocked()
            assert one.mine and not two.mine
            two.release()  # an outage that ends at once
            two.want(tree)
            with trio.fail_after(60):
                await trio.testing.wait_all_tasks_blocked()
            one.release()
            with trio.fail_after(60):
                while not two.mine:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)
