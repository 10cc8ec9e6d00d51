"""The shared cache in the long run: few packs, a size limit, damage, other servers."""

from __future__ import annotations

import errno
import random
import sqlite3
from pathlib import Path

import pytest
import trio

from artifactfs.git.pack.store import PackStore
from artifactfs.hydration.background import upkeep
from tests.e2e.delay_proxy import DelayProxy
from tests.git.http_backend import Backend
from tests.hydration.cold_mount import cold_mount
from tests.hydration.tree_repository import TreeRepository


def test_many_small_packs_become_few(
    url: str, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            oids = [oid for path, oid in tree_repository.oids.items() if path.startswith(b"src/")]
            store = PackStore(mount.state.shared_objects)
            for start in range(0, 900, 15):
                await mount.hydrator.prefetch(oids[start : start + 15])
                await mount.landed()
            await mount.hydrator.parts.upkeep.once()
            assert len(store.packs()) < 45
            for path, content in list(tree_repository.contents.items())[:200]:
                assert await mount.read(path) == content

    trio.run(main)


def test_the_size_limit_is_kept_and_what_was_evicted_comes_again(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, cache_limit=1_000_000) as mount:
            held = None
            for path in (b"data/large.bin", b"data/huge.py", b"data/table.csv"):
                await mount.read(path)
                held = held or mount.hydrator.find(mount.oid(path))
            await mount.landed()
            for path in mount.files()[:300]:
                await mount.read(path)
            await mount.landed()
            await mount.hydrator.parts.upkeep.once()
            store = PackStore(mount.state.shared_objects)
            assert held is not None  # an open blob is passed by, and goes on
            assert (
                store.total_bytes() + mount.hydrator.parts.stores.large.total_bytes()
                <= 1_000_000 + 3_000_000
            )
            assert held.read(0, 100) == tree_repository.contents[b"data/large.bin"][:100]
            held.close()
            await mount.hydrator.evict(0)
            assert store.total_bytes() + mount.hydrator.parts.stores.large.total_bytes() == 0
            mount.hydrator.parts.stores.memory.clear()
            with line.recording() as requests:
                path = b"data/large.bin"
                assert await mount.read(path) == tree_repository.contents[path]
            assert requests

    trio.run(main)


FAULTS = {
    "sizes": sqlite3.OperationalError("database or disk is full"),
    "merging": OSError(errno.ENOSPC, "No space left on device"),
    "a bad sector": OSError(errno.EIO, "Input/output error"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_the_size_limit_is_kept_where_something_else_cannot_be_done(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, cache_limit=1_000) as mount:
            await mount.read(b"data/table.csv")
            await mount.landed()

            def refuse(*_: object, **_options: object) -> None:
                raise FAULTS[what]

            if what == "sizes":
                monkeypatch.setattr(mount.hydrator.parts.stores.sizes, "_write", refuse)
            else:
                monkeypatch.setattr(upkeep, "MANY_PACKS", -1)
                monkeypatch.setattr(PackStore, "consolidate", refuse)
            await mount.hydrator.parts.upkeep.once()
            assert PackStore(mount.state.shared_objects).total_bytes() == 0

    trio.run(main)


def test_a_damaged_pack_is_never_shown_and_dropped(
    url: str, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    paths = [b"src/p0/m0/f%02d.py" % number for number in range(20)]

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await mount.hydrator.prefetch([tree_repository.oids[path] for path in paths])
            await mount.landed()
            store = PackStore(mount.state.shared_objects)
            (pack,) = store.packs()
            content = bytearray(pack.path.read_bytes())
            rng = random.Random(2)
            for _ in range(200):
                content[rng.randrange(12, len(content) - 20)] ^= 0xFF
            pack.path.chmod(0o600)
            pack.path.write_bytes(content)
            mount.hydrator.parts.stores.memory.clear()
            for path in paths:
                assert await mount.read(path) == tree_repository.contents[path]
            await mount.landed()
            await mount.hydrator.parts.upkeep.once()
            assert pack.name not in [left.name for left in store.packs()]

    trio.run(main)


def test_a_pack_found_damaged_while_packs_are_merged_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            monkeypatch.setattr(upkeep, "MANY_PACKS", -1)
            monkeypatch.setattr("artifactfs.git.pack.store.FAN_IN", 2)
            store = PackStore(mount.state.shared_objects)
            for path in (b"data/table.csv", b"src/p0/m0/f00.py", b"deep/a/b/c/d/leaf.txt"):
                await mount.read(path)
                await mount.landed()
            pack = store.packs()[0]
            content = pack.path.read_bytes()
            pack.path.unlink()
            pack.path.write_bytes(content[:-30] + b"!!" + content[-28:])
            await mount.hydrator.parts.upkeep.once()
            assert pack.name not in [left.name for left in store.packs()]
            assert any(pack.name in record.getMessage() for record in caplog.records)

    with caplog.at_level("WARNING"):
        trio.run(main)


def test_a_server_without_protocol_2_works_too(
    backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    backend.version_2 = False

    async def main() -> None:
        url = backend.url + "/tree.git"
        async with cold_mount(url, tmp_path, hydrate="all") as mount:
            for path in (b"data/large.bin", b"src/p4/m4/f04.py", b"README.md"):
                assert await mount.read(path) == tree_repository.contents[path]
            mount.hydrator.start_sweep(mount.tip.tree)
            await mount.until(lambda stats: stats.sweep_state == "done")
            stats = mount.hydrator.stats()
            assert stats.blobs_here == stats.blobs_total
            assert stats.limits

    trio.run(main)
