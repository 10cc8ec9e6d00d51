"""The shared object directory: whole packs or none, whoever crashes; small packs put together."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifactfs.errors import CorruptData
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.pack import store as packstore
from artifactfs.git.pack.index import PackIndex
from artifactfs.git.pack.parser import PackedObject
from artifactfs.git.pack.store import PackStore
from tests.git.pack_samples import (
    HandmadePack,
    SampleRepository,
    blob_id,
    content_of,
    damaged,
    git,
    half_of,
    in_chunks,
    ingest,
    interrupt,
    leftovers,
    make_delta,
)


@pytest.fixture
def gitdir(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "--bare", "repo.git")
    git(tmp_path / "repo.git", "config", "extensions.partialClone", "origin")
    git(tmp_path / "repo.git", "config", "core.repositoryFormatVersion", "1")
    return tmp_path / "repo.git"


@pytest.fixture
def store(gitdir: Path) -> PackStore:
    return PackStore(gitdir / "objects")


def blob_pack(*contents: bytes) -> bytes:
    handmade = HandmadePack()
    for content in contents:
        handmade.blob(content)
    return handmade.finish()


def pack_files(store: PackStore) -> set[str]:
    return set(os.listdir(store.objects_dir / "pack"))


@pytest.mark.parametrize("options", [("--window=0",), ("--delta-base-offset", "--window=50")])
def test_git_finds_everything_in_a_stored_pack(
    sample: SampleRepository, store: PackStore, gitdir: Path, options: tuple[str, ...]
) -> None:
    pack = sample.pack(*options)
    summary = ingest(store, pack)
    assert (summary.objects, summary.bytes) == (len(sample.contents), len(pack))
    assert pack_files(store) == {f"{summary.name}{x}" for x in (".pack", ".idx", ".promisor")}
    assert leftovers(store) == []
    git(gitdir, "verify-pack", f"objects/pack/{summary.name}.idx")
    git(gitdir, "fsck", "--full")
    path = store.objects_dir / "pack" / f"{summary.name}.pack"
    assert path.read_bytes() == pack
    git(gitdir, "index-pack", "-o", str(gitdir / "git.idx"), str(path))
    assert (gitdir / "git.idx").read_bytes() == path.with_suffix(".idx").read_bytes()


def test_git_keeps_the_packs_at_gc(
    sample: SampleRepository, store: PackStore, gitdir: Path
) -> None:
    summary = ingest(store, sample.pack())
    git(gitdir, "update-ref", "refs/heads/main", sample.resolve("main").hex())
    git(gitdir, "gc", "-q", "--prune=now")
    counts = git(gitdir, "count-objects", "-v").decode()
    assert "count: 0\n" in counts and "garbage: 0\n" in counts
    assert summary.objects == len(sample.contents)


def test_objects_are_handed_out_as_they_stream(sample: SampleRepository, store: PackStore) -> None:
    pack = sample.pack()
    got: dict[bytes, bytes] = {}
    fed = 0
    first: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal fed
        async for chunk in in_chunks(pack):
            fed += len(chunk)
            yield chunk

    def receive(item: PackedObject) -> None:
        first.append(fed)
        got[item.oid] = content_of(item)

    trio.run(lambda: store.ingest(chunks(), on_object=receive))
    assert got == {oid: content for oid, (_, content) in sample.contents.items()}
    assert first[0] < len(pack) // 2


def test_a_receiver_may_keep_a_spooled_file(
    sample: SampleRepository, store: PackStore, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"

    def receive(item: PackedObject) -> None:
        if item.spooled is not None and item.oid == sample.resolve("main:zeros"):
            item.spooled.rename(kept)

    trio.run(lambda: store.ingest(in_chunks(sample.pack()), on_object=receive))
    assert kept.read_bytes() == sample.contents[sample.resolve("main:zeros")][1]
    assert leftovers(store) == []


def test_what_was_expected_and_did_not_come(store: PackStore) -> None:
    expected = {blob_id(b"one"), blob_id(b"two")}
    summary = trio.run(lambda: store.ingest(in_chunks(blob_pack(b"one")), expected=expected))
    assert summary.missing == {blob_id(b"two")}


def test_an_empty_pack_is_not_kept(store: PackStore) -> None:
    summary = ingest(store, blob_pack())
    assert (summary.name, summary.objects) == ("", 0)
    assert pack_files(store) == set() and leftovers(store) == []


def test_the_same_pack_twice(store: PackStore) -> None:
    pack = blob_pack(b"one", b"one", b"two")
    assert ingest(store, pack) == ingest(store, pack)
    assert len(store.packs()) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "longer", "nothing"])
def test_nothing_is_published_of_a_broken_pack(
    sample: SampleRepository, store: PackStore, damage: str
) -> None:
    pack = sample.pack()
    with pytest.raises(CorruptData):
        ingest(store, damaged(pack, damage))
    assert pack_files(store) == set() and leftovers(store) == []


@pytest.mark.parametrize("how", ["breaks", "is cancelled"])
@pytest.mark.parametrize("options", [("--window=0",), ("--delta-base-offset", "--window=50")])
def test_whole_objects_survive_a_connection_that(
    sample: SampleRepository, store: PackStore, gitdir: Path, how: str, options: tuple[str, ...]
) -> None:
    small = [oid for oid in sample.oids() if len(sample.contents[oid][1]) < 20_000]
    pack = sample.pack(*options, oids=small)
    interrupt(store.ingest, store, pack, how)
    assert leftovers(store) == []
    (rescued,) = store.packs()
    git(gitdir, "verify-pack", str(_index(rescued.path)))
    odb = ObjectDatabase(gitdir)
    oids = list(PackIndex(_index(rescued.path)).oids())
    assert 0 < len(oids) < len(small)
    assert all(odb.read(oid) == sample.contents[oid] for oid in oids)


def test_nothing_survives_where_nothing_is_whole(store: PackStore) -> None:
    large = blob_pack(os.urandom(4 << 20))
    interrupt(store.ingest, store, large, "is cancelled")
    waiting = HandmadePack()
    waiting.ref_delta(b"base", make_delta(b"base", [(0, 4), b"!"]))
    waiting.blob(b"base" * 1000)
    waiting.blob(os.urandom(3000))
    interrupt(store.ingest, store, waiting.finish(), "is cancelled")
    with pytest.raises(ConnectionError):
        trio.run(lambda: store.ingest(half_of(b"", ConnectionError())))
    assert pack_files(store) == set() and leftovers(store) == []


def test_many_at_once(sample: SampleRepository, store: PackStore, gitdir: Path) -> None:
    oids = sample.oids()[::3]
    packs = [sample.pack(oids=[oid]) for oid in oids]

    async def all_of_them() -> None:
        async with trio.open_nursery() as nursery:
            for pack in packs:
                nursery.start_soon(lambda pack=pack: store.ingest(in_chunks(pack, 100)))

    trio.run(all_of_them)
    odb = ObjectDatabase(gitdir)
    assert all(odb.read(oid) == sample.contents[oid] for oid in oids)


CRASHES = """
import sys, trio
from pathlib import Path
from artifactfs.git.pack.store import PackStore
async def chunks():
    yield Path(sys.argv[2]).read_bytes()[:-1]
    print("ready", flush=True)
    await trio.sleep_forever()
trio.run(lambda: PackStore(Path(sys.argv[1])).ingest(chunks()))
"""


def test_what_a_killed_process_left_is_removed(
    sample: SampleRepository, store: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pack").write_bytes(sample.pack())
    command = [sys.executable, "-c", CRASHES, str(store.objects_dir), str(tmp_path / "pack")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        monkeypatch.setattr(packstore, "ABANDONED_S", -1)
        store.clean()
        assert leftovers(store) != []  # it lives
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr(packstore, "ABANDONED_S", 60)
    store.clean()
    assert leftovers(store) != []  # too young
    monkeypatch.setattr(packstore, "ABANDONED_S", -1)
    store.clean()
    assert leftovers(store) == [] and pack_files(store) == set()


def test_halves_of_packs_are_removed(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ingest(store, blob_pack(b"one")).name
    two = ingest(store, blob_pack(b"two")).name
    whole = ingest(store, blob_pack(b"three")).name
    (store.objects_dir / "pack" / f"{one}.idx").unlink()
    (store.objects_dir / "pack" / f"{two}.pack").unlink()
    store.clean()
    assert len(pack_files(store)) == 7
    monkeypatch.setattr(packstore, "ABANDONED_S", -1)
    store.clean()
    store.clean()
    assert pack_files(store) == {f"{whole}{x}" for x in (".pack", ".idx", ".promisor")}


def test_eviction_takes_the_least_recently_used(store: PackStore, gitdir: Path) -> None:
    names = [ingest(store, blob_pack(bytes([n]) * 5000)).name for n in range(5)]
    for age, name in enumerate(names):
        os.utime(store.objects_dir / "pack" / f"{name}.pack", (1000 + age, 1000 + age))
    store.touch([names[0], "pack-gone"])
    odb = ObjectDatabase(gitdir)
    assert store.total_bytes() == sum(pack.bytes for pack in store.packs())
    limit = store.total_bytes() * 2 // 5
    assert store.evict(limit, keep=[names[1]]) == names[2:]
    assert {pack.name for pack in store.packs()} == {names[0], names[1]}
    assert store.total_bytes() <= limit
    assert store.evict(limit) == []
    assert odb.blob(blob_id(bytes([4]) * 5000)) == bytes([4]) * 5000  # was open
    odb.refresh()
    assert odb.blob(blob_id(bytes([4]) * 5000)) is None
    assert odb.blob(blob_id(bytes([0]) * 5000)) is not None
    git(gitdir, "fsck")


@pytest.mark.parametrize("deep", [False, True])
def test_repair_drops_damaged_packs(store: PackStore, deep: bool) -> None:
    names = [ingest(store, blob_pack(os.urandom(300 + n))).name for n in range(6)]
    directory = store.objects_dir / "pack"

    def damage(name: str, change: object, suffix: str = "pack") -> None:
        assert callable(change)
        path = directory / f"{name}.{suffix}"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    damage(names[1], lambda content: content[:-5])
    damage(names[2], lambda content: b"")
    damage(names[3], lambda content: content[:-5], "idx")
    damage(names[4], lambda content: content[:50] + b"XX" + content[52:])
    expected = set(names[1:4]) | ({names[4]} if deep else set())
    assert set(store.repair(deep=deep)) == expected
    assert {pack.name for pack in store.packs()} == set(names) - expected


# Consolidation


def test_small_packs_become_one(sample: SampleRepository, store: PackStore, gitdir: Path) -> None:
    oids = sample.oids()
    packs = [
        sample.pack(*options, oids=oids[start : start + 30])
        for start, options in enumerate([(), ("--delta-base-offset", "--window=50")] * 6)
    ]
    for pack in packs:
        ingest(store, pack)
    stored = {oid for pack in store.packs() for oid in PackIndex(_index(pack.path)).oids()}
    odb = ObjectDatabase(gitdir)
    assert all(odb.read(oid) for oid in stored)
    (name,) = store.consolidate(everything=True)
    assert [pack.name for pack in store.packs()] == [name]
    assert leftovers(store) == []
    index = PackIndex(_index(store.packs()[0].path))
    assert sorted(index.oids()) == sorted(stored)  # all, and none twice
    for database in (odb, ObjectDatabase(gitdir)):
        assert all(database.read(oid) == sample.contents[oid] for oid in stored)
    git(gitdir, "verify-pack", str(_index(store.packs()[0].path)))
    assert store.repair(deep=True) == []
    odb.refresh()
    assert all(odb.read(oid) == sample.contents[oid] for oid in stored)


def _index(pack: Path) -> Path:
    return pack.with_suffix(".idx")


def test_deltas_whose_base_is_in_an_earlier_pack_too(store: PackStore, gitdir: Path) -> None:
    base = os.urandom(2000)
    versions = [base + bytes([n]) for n in range(3)]
    for version in versions:
        handmade = HandmadePack()
        for n in range(version[-1]):
            handmade.blob(os.urandom(100 * n + 200))
        at = handmade.blob(base)
        handmade.blob(os.urandom(3000))
        delta = make_delta(base, [(0, len(base)), version[-1:]])
        middle = handmade.ofs_delta(at, delta)
        handmade.ofs_delta(middle, make_delta(version, [b"deep", (0, len(version))]))
        handmade.ref_delta(base, make_delta(base, [b"ref", version[-1:], (5, 9)]))
        ingest(store, handmade.finish())
    store.consolidate(everything=True)
    (pack,) = store.packs()
    git(gitdir, "verify-pack", str(_index(pack.path)))
    odb = ObjectDatabase(gitdir)
    for version in versions:
        for content in (version, b"deep" + version, b"ref" + version[-1:] + base[5:14]):
            assert odb.blob(blob_id(content)) == content


def test_packs_are_put_together_by_size(store: PackStore) -> None:
    for number in range(packstore.FAN_IN - 1):
        ingest(store, blob_pack(b"%d" % number))
    assert store.consolidate() == []
    ingest(store, blob_pack(b"one more"))
    ingest(store, blob_pack(os.urandom(900_000)))
    assert len(store.consolidate()) == 1
    assert len(store.packs()) == 2


def test_consolidated_packs_stay_small_enough_to_evict(store: PackStore) -> None:
    for _ in range(9):
        ingest(store, blob_pack(os.urandom(10_000)))
    names = store.consolidate(everything=True, max_bytes=40_000)
    assert len(names) == 3
    assert all(pack.bytes <= 40_000 for pack in store.packs())


def test_how_recently_a_pack_was_used_survives(store: PackStore) -> None:
    for number in range(3):
        name = ingest(store, blob_pack(b"%d" % number)).name
        os.utime(store.objects_dir / "pack" / f"{name}.pack", (number, 1000 + number))
    store.consolidate(everything=True)
    assert store.packs()[0].used == 1002


def test_a_damaged_pack_is_left_out_and_dropped(store: PackStore, gitdir: Path) -> None:
    good, bad = os.urandom(500), os.urandom(500)
    ingest(store, blob_pack(good))
    ingest(store, blob_pack(b"other"))
    path = store.objects_dir / "pack" / f"{ingest(store, blob_pack(bad)).name}.pack"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:100] + b"!!" + content[102:])
    told: list[str] = []
    store.consolidate(everything=True, damaged=told.append)
    assert told == [path.stem]
    odb = ObjectDatabase(gitdir)
    assert odb.blob(blob_id(good)) == good and odb.blob(blob_id(bad)) is None
    assert len(store.packs()) == 1


def test_a_whole_pack_is_kept_where_its_fetch_is_cancelled(store: PackStore) -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:

            async def chunks() -> AsyncIterator[bytes]:
                yield blob_pack(b"whole")
                scope.cancel()  # no checkpoint comes between the last byte and the publishing

            await store.ingest(chunks())

    trio.run(main)
    assert len(store.packs()) == 1
    assert not leftovers(store)


def test_only_one_consolidates(store: PackStore) -> None:
    for number in range(3):
        ingest(store, blob_pack(b"%d" % number))
    with open(store.objects_dir / "consolidate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert store.consolidate(everything=True) == []
    assert len(store.consolidate(everything=True)) == 1


WORKS = """
import os, sys, trio
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from artifactfs.git.pack.store import PackStore
from tests.git.pack.test_packstore import blob_pack
from tests.git.pack_samples import in_chunks
store = PackStore(Path(sys.argv[1]))
for number in range(40):
    trio.run(lambda: store.ingest(in_chunks(blob_pack(sys.argv[3].encode() + b"%d" % number))))
    if number % 5 == 4:
        store.consolidate(everything=True)
"""


def test_several_processes_at_work(store: PackStore, gitdir: Path) -> None:
    root = str(Path(__file__).parents[3])
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKS, str(store.objects_dir), root, name])
        for name in ("a", "b", "c")
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    odb = ObjectDatabase(gitdir)
    for name in (b"a", b"b", b"c"):
        for number in range(40):
            assert odb.blob(blob_id(name + b"%d" % number)) == name + b"%d" % number
    git(gitdir, "fsck")
    assert leftovers(store) == []


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=st.lists(st.lists(st.integers(0, 100), min_size=1), min_size=2, max_size=5))
def test_any_division_into_packs_consolidates(
    sample: SampleRepository, tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]]
) -> None:
    directory = tmp_path_factory.mktemp("groups")
    store = PackStore(directory / "objects")
    small = [oid for oid in sample.oids() if len(sample.contents[oid][1]) < 20_000]
    wanted = set()
    for group in groups:
        oids = sorted({small[number % len(small)] for number in group})
        wanted.update(oids)
        ingest(store, sample.pack("--delta-base-offset", "--window=20", oids=oids))
    store.consolidate(everything=True)
    assert len(store.packs()) == 1
    odb = ObjectDatabase(directory)
    assert all(odb.read(oid) == sample.contents[oid] for oid in wanted)
    assert len(PackIndex(_index(store.packs()[0].path))) == len(wanted)
    shutil.rmtree(directory)


# The index of a pack
