"""Readahead as plain data: a tree in memory, misses and uses in, windows out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
import trio.testing

from artifactfs.git.objects.database import MissingObject, TreeEntry
from artifactfs.hydration.order.nearby import NearbyBlob, NearbyWalk
from artifactfs.hydration.order.readahead import SIBLINGS, Readahead

FILE, FOLDER, GITLINK = 0o100644, 0o040000, 0o160000


class Trees:
    """`sizes` of directories: each path has that many files; oids are made of the names."""

    def __init__(self, files: dict[bytes, int]) -> None:
        self._trees: dict[bytes, dict[bytes, TreeEntry]] = {}
        self.here: set[bytes] = set()
        self.size_of: Callable[[bytes], int | None] = lambda _: 1_000
        self.windows: list[Sequence[NearbyBlob]] = []
        for directory, count in files.items():
            for number in range(count):
                self._add(directory, b"f%04d" % number, FILE)
        self.readahead = Readahead(
            tree=self.read,
            absent=lambda oid: oid not in self.here,
            size_of=lambda oid: self.size_of(oid),
            on_window=self._take,
        )

    def _take(self, window: Sequence[NearbyBlob]) -> None:
        self.windows.append(window)
        self.here.update(blob.oid for blob in window)

    @staticmethod
    def oid(path: bytes) -> bytes:
        return path[-20:].rjust(20, b"\0")

    def _add(self, directory: bytes, name: bytes, mode: int) -> None:
        entries = self._trees.setdefault(self.oid(b"/" + directory), {})
        if name in entries:
            return
        path = directory + b"/" + name if directory else name
        oid = self.oid(b"/" + path) if mode == FOLDER else self.oid(path)
        entries[name] = TreeEntry(name, mode, oid)
        if directory:
            above, _, own = directory.rpartition(b"/")
            self._add(above, own, FOLDER)

    def name_like(self, path: bytes, new: bytes) -> None:
        """Rename a file."""
        directory, _, name = path.rpartition(b"/")
        del self._trees[self.oid(b"/" + directory)][name]
        self._add(directory, new.rpartition(b"/")[2], FILE)

    def read(self, oid: bytes) -> list[TreeEntry]:
        if oid not in self._trees:
            raise MissingObject(oid)
        return sorted(self._trees[oid].values())

    def chain(self, path: bytes) -> tuple[bytes, ...]:
        trees = []
        while path:
            path = path.rpartition(b"/")[0]
            trees.append(self.oid(b"/" + path))
        return tuple(trees)

    def open(self, path: bytes, pid: int = 1) -> bool:
        """A program opens `path`; whether that was a miss."""
        oid = self.oid(path)
        if oid in self.here:
            self.readahead.used(oid)
            return False
        found = self.readahead.missed(oid, path, self.chain(path), pid)
        self.here.add(oid)
        self.here.update(blob.oid for blob in found)
        return True


def run(body: Callable[[], Awaitable[None]]) -> None:
    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_walk_goes_on_behind_the_file_and_then_outwards() -> None:
    trees = Trees({b"a": 3, b"a/k": 2, b"b": 1})
    walk = NearbyWalk(trees.read, b"a/f0001", trees.chain(b"a/f0001"))
    paths = [step.path for step in walk]
    assert paths == [b"a/f0002", b"a/k/f0000", b"a/k/f0001", b"a/f0000", b"b/f0000"]


def test_a_tree_that_is_not_here_ends_nothing() -> None:
    trees = Trees({b"a": 3})
    missing = (b"x" * 20, *trees.chain(b"a/f0001"))
    walk = NearbyWalk(trees.read, b"a/x/f", missing)
    assert len([step for step in walk]) == 3


def scan(trees: Trees, folders: list[bytes], files: int) -> int:
    """Open every file of `folders`; how many requests that took."""
    misses = sum(
        trees.open(b"%s/f%04d" % (folder, number)) for folder in folders for number in range(files)
    )
    return misses + len(trees.windows)


def test_the_first_miss_brings_siblings_and_the_window_grows_fourfold() -> None:
    async def body() -> None:
        folders = [b"p/d%02d" % number for number in range(100)]
        trees = Trees(dict.fromkeys(folders, 50))
        assert scan(trees, folders, 50) <= 10  # 5,000 files
        sizes = [len(window) for window in trees.windows]
        assert sizes[0] <= 128 < sizes[1] <= 512 < sizes[2] <= 2_048

    run(body)


def test_a_scan_in_another_order_than_the_tree_is_a_scan_too() -> None:
    async def body() -> None:
        folders = [b"p/d%d" % (number * 37 % 100) for number in range(100)]
        trees = Trees(dict.fromkeys(folders, 50))
        assert scan(trees, folders, 50) <= 16

    run(body)


def test_random_reads_fall_back_to_the_file_alone() -> None:
    async def body() -> None:
        trees = Trees({b"p/d%d" % number: 50 for number in range(100)})
        for folder in range(60):
            assert trees.open(b"p/d%d/f0025" % (folder * 37 % 100))
        assert trees.windows == []
        assert len(trees.here) <= 60 + 2 * SIBLINGS

    run(body)


def test_two_scans_by_two_processes_do_not_disturb_each_other() -> None:
    async def body() -> None:
        trees = Trees({b"p/d%d" % n: 40 for n in range(20)} | {b"q/d%d" % n: 40 for n in range(20)})
        misses = 0
        for folder in range(20):
            for number in range(40):
                misses += trees.open(b"p/d%d/f%04d" % (folder, number), pid=1)
                misses += trees.open(b"q/d%d/f%04d" % (folder, number), pid=2)
        assert misses + len(trees.windows) <= 20

    run(body)


def test_a_window_stays_in_the_directory_that_is_scanned() -> None:
    async def body() -> None:
        names = [b"top", b"top/a", b"top/a/x", b"top/b", b"top/b/y"]
        trees = Trees(dict.fromkeys(names, 60) | {b"other%d" % n: 500 for n in range(5)})
        misses = sum(trees.open(b"%s/f%04d" % (n, i)) for n in names for i in range(60))
        assert misses == 1
        assert len(trees.windows) <= 2
        assert all(blob.path.startswith(b"top/") for window in trees.windows for blob in window)

    run(body)


def test_a_scan_that_leaves_its_directory_widens_it_one_miss_at_a_time() -> None:
    async def body() -> None:
        names = [b"p/a/b/c", b"p/a/b/d", b"p/a/e", b"p/f", b"p/g"]
        trees = Trees(dict.fromkeys(names, 40) | {b"q": 40})
        misses = sum(trees.open(b"%s/f%04d" % (n, i)) for n in names for i in range(40))
        assert misses <= 4
        assert all(blob.path.startswith(b"p/") for window in trees.windows for blob in window)

    run(body)


def test_a_scan_of_small_directories_is_seen_at_the_second_miss() -> None:
    async def body() -> None:
        names = sorted([b"p", *(b"p/%s%d" % (name, n) for name in (b"a", b"z") for n in range(90))])
        trees = Trees(dict.fromkeys(names, 2))
        trees.name_like(b"p/f0001", b"p/k")
        paths = sorted(
            [b"p/f0000", b"p/k", *(b"%s/f%04d" % (n, i) for n in names[1:] for i in (0, 1))]
        )
        assert sum(trees.open(path) for path in paths) <= 2

    run(body)


def test_binaries_of_unknown_size_are_not_fetched_unasked() -> None:
    async def body() -> None:
        trees = Trees({b"a": 300})
        trees.name_like(b"a/f0100", b"a/f0100.iso")
        trees.size_of = lambda _: None
        for number in range(99):
            trees.open(b"a/f%04d" % number)
        fetched = [blob.path for window in trees.windows for blob in window]
        assert b"a/f0101" in fetched
        assert b"a/f0100.iso" not in fetched

    run(body)


def test_a_read_that_failed_and_is_tried_again_is_no_scan() -> None:
    async def body() -> None:
        trees = Trees({b"a": 1, b"b": 400})
        oid = trees.oid(b"a/f0000")
        for _ in range(5):
            trees.readahead.missed(oid, b"a/f0000", trees.chain(b"a/f0000"), 1)
        assert trees.windows == []

    run(body)


def test_files_that_are_large_by_name_but_turn_out_small_are_read_ahead() -> None:
    """Without sizes: an icon in each of 200 folders, of 1 kB; or pictures of 1 GB."""

    async def body() -> None:
        for bytes_each, most in ((1_000, 20), (1 << 30, 10_000)):
            folders = [b"l/d%03d" % number for number in range(200)]
            trees = Trees(dict.fromkeys(folders, 1))
            for folder in folders:
                trees.name_like(folder + b"/f0000", folder + b"/x.png")
            read: set[bytes] = set()
            trees.size_of = lambda oid, size=bytes_each, read=read: size if oid in read else None
            misses = 0
            for folder in folders:
                misses += trees.open(folder + b"/x.png")
                read.add(trees.oid(folder + b"/x.png"))
            assert misses + len(trees.windows) <= most
            if bytes_each > 1_000:
                assert misses == 200 and not trees.windows

    run(body)


def test_catalogues_of_messages_are_small_by_name() -> None:
    """Compiled ones lie beside the others and are no larger: without sizes they come together."""

    async def body() -> None:
        folders = [b"l/d%03d" % number for number in range(200)]
        trees = Trees(dict.fromkeys(folders, 2))
        for folder in folders:
            trees.name_like(folder + b"/f0001", folder + b"/django.mo")
        read: set[bytes] = set()
        trees.size_of = lambda oid: 1_000 if oid in read else None
        misses = 0
        for folder in folders:
            for name in (b"/f0000", b"/django.mo"):
                misses += trees.open(folder + name)
                read.add(trees.oid(folder + name))
        assert (misses, len(trees.windows)) == (2, 2)

    run(body)
