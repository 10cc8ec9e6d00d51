"""Sizes: the store, and the three ways to learn one."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest
import trio

from artifactfs.hydration.local import sizes
from artifactfs.hydration.local.sizes import SizeStore
from tests.e2e.delay_proxy import DelayProxy
from tests.git.http_backend import Backend
from tests.hydration.cold_mount import cold_mount
from tests.hydration.tree_repository import TreeRepository


def oid(number: int) -> bytes:
    return number.to_bytes(20, "big")


def test_sizes_are_kept_and_corrected(tmp_path: Path) -> None:
    async def main() -> None:
        store = SizeStore(tmp_path / "cache" / "sizes.db")
        await store.add_many({oid(n): n for n in range(25_000)})
        store.put(oid(7), 70)
        assert store.get(oid(7)) == 70
        store.close()
        again = SizeStore(tmp_path / "cache" / "sizes.db")
        assert again.get(oid(7)) == 70
        assert again.get(oid(24_999)) == 24_999
        assert again.get(oid(30_000)) is None
        some = [oid(n) for n in range(24_000, 26_000)]
        assert again.get_many(some) == {oid(n): n for n in range(24_000, 25_000)}
        again.close()

    trio.run(main)


def test_what_another_process_learns_is_known_also_where_there_was_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        store, other = (SizeStore(tmp_path / "sizes.db") for _ in range(2))
        some = [oid(n) for n in range(1_000)]
        assert store.get_many(some) == {}
        await other.add_many({oid(n): n for n in range(500, 600)})
        assert store.get_many(some) == {oid(n): n for n in range(500, 600)}
        store.close()
        other.close()

    trio.run(main)


def test_a_size_that_was_just_learnt_is_known_before_it_is_written(tmp_path: Path) -> None:
    store = SizeStore(tmp_path / "sizes.db")
    for number in range(40_000):  # more than memory keeps
        store.put(oid(number), number)
    assert store.get(oid(0)) == 0
    assert len(store.get_many([oid(n) for n in range(40_000)])) == 40_000
    store.close()


def test_what_a_remote_tells_late_does_not_replace_what_the_content_said(tmp_path: Path) -> None:
    async def main() -> None:
        store = SizeStore(tmp_path / "sizes.db")
        store.put(oid(1), 10)
        await store.add_many({oid(1): 5, oid(2): 20})
        assert store.get_many([oid(1), oid(2)]) == {oid(1): 10, oid(2): 20}
        store.close()
        again = SizeStore(tmp_path / "sizes.db")
        assert again.get_many([oid(1), oid(2)]) == {oid(1): 10, oid(2): 20}
        again.close()

    trio.run(main)


def _write(path: Path, first: int) -> None:
    async def main() -> None:
        store = SizeStore(path)
        for start in range(first, first + 2_000, 100):
            await store.add_many({oid(n): n for n in range(start, start + 100)})
        store.close()

    trio.run(main)


@pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
def test_several_processes_write_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The second is for btrfs."""
    monkeypatch.setattr(sizes, "journal_mode", lambda folder: mode)
    path = tmp_path / "sizes.db"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, n * 1_500)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM sizes").fetchone() == (6_500,)
    assert (path.read_bytes()[18] == 2) == (mode == "WAL")  # of the header: how it is read


def test_a_disk_that_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The mount goes on with what it learns; nothing is kept."""
    (tmp_path / "cache").write_text("no folder")

    async def main() -> None:
        store = SizeStore(tmp_path / "cache" / "sizes.db")
        await store.add_many({oid(n): n for n in range(40_000)})  # more than memory keeps
        store.put(oid(50_000), 5)
        await store.flush()
        assert store.get(oid(1)) == 1
        assert store.get(oid(39_999)) == 39_999
        assert store.get(oid(50_000)) == 5
        assert store.get(oid(60_000)) is None
        assert len(store.get_many([oid(n) for n in range(40_000)])) == 40_000
        store.close()

    trio.run(main)
    assert "sizes are kept in memory" in caplog.text


def test_a_damaged_database_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "sizes.db"
    path.write_bytes(os.urandom(8_192))
    store = SizeStore(path)
    store.put(oid(1), 1)
    store.close()
    assert SizeStore(path).get(oid(1)) == 1
    assert (tmp_path / "sizes.db.damaged").exists()


def test_a_directory_is_asked_for_in_one_request(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            context = mount.context(b"src/p0/m0/f00.py")
            entries = mount.odb.tree(context.trees[0])
            oids = [entry.oid for entry in entries]
            assert mount.hydrator.known_sizes(oids) == {}
            with line.recording() as requests:
                sizes = await mount.hydrator.sizes(context.trees[0], oids)
            for entry in entries:
                content = tree_repository.contents[b"src/p0/m0/" + entry.name]
                assert sizes[entry.oid] == len(content)
            assert [r.command for r in requests if r.method == "POST"] == ["object-info"]
            assert mount.hydrator.known_sizes(oids) == sizes
            assert mount.hydrator.stats().blobs_received == 0

    trio.run(main)


def test_where_object_info_is_refused_contents_tell_the_sizes(
    url: str, backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    """A server may advertise it and have it turned off, or a proxy before it may not let it by."""
    backend.refuses_object_info = True

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            for path in (b"data/table.csv", b"deep/a/b/c/d/leaf.txt"):
                asked = len(backend.seen)
                tree = mount.context(path).trees[0]
                with trio.fail_after(15):  # the deadline is 20 s
                    sizes = await mount.hydrator.sizes(tree, [mount.oid(path)])
                assert sizes == {mount.oid(path): len(tree_repository.contents[path])}
            assert "object-info" not in backend.commands()[asked:]
            stats = mount.hydrator.stats()
            assert "refuses it" in stats.limits[0] and stats.remote == "up"

    trio.run(main)


def test_without_object_info_a_scan_of_sizes_takes_few_requests(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, object_info=False) as mount:
            mount.hydrator.start_sweep(mount.tip.tree)
            total = len(set(tree_repository.oids.values()))
            await mount.until(lambda stats: stats.blobs_total == total)
            directories: dict[bytes, list[bytes]] = {}
            for path in mount.files():
                directories.setdefault(path.rpartition(b"/")[0], []).append(path)
            with line.recording() as requests:
                for paths in directories.values():
                    tree = mount.context(paths[0]).trees[0]
                    oids = [mount.oid(path) for path in paths]
                    sizes = mount.hydrator.known_sizes(oids)
                    if len(sizes) < len(oids):
                        sizes = await mount.hydrator.sizes(tree, oids)
                    for path in paths:
                        content = tree_repository.contents[path]
                        assert sizes[mount.oid(path)] == len(content)
            assert len(directories) > 50
            assert len([r for r in requests if r.command == "fetch"]) <= 20
            assert not [r for r in requests if r.command == "object-info"]
            assert mount.hydrator.stats().limits == ("no sizes",)

    trio.run(main)
