"""Packs that git reads for us when they are whole: the same store, the same promises."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from artifactfs.errors import CorruptData
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.pack.index_pack import IndexedObject
from artifactfs.git.pack.store import PackStore
from tests.git.pack_samples import (
    HandmadePack,
    SampleRepository,
    blob_id,
    damaged,
    git,
    in_chunks,
    interrupt,
    leftovers,
    make_delta,
)


@pytest.fixture
def gitdir(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "--bare", "repo.git")
    return tmp_path / "repo.git"


@pytest.fixture
def store(gitdir: Path) -> PackStore:
    return PackStore(gitdir / "objects")


def ingest_whole(store: PackStore, pack: bytes) -> list[IndexedObject]:
    summary = trio.run(lambda: store.ingest_whole(in_chunks(pack)))
    objects = store.contents(summary.name)
    assert len(objects) == summary.objects
    return objects


def let_git_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for git from now on fails, as git does on a full disk."""
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'fatal: write error: No space left on device' >&2\nexit 128\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")


@pytest.mark.parametrize("options", [("--window=0",), ("--delta-base-offset", "--window=50")])
def test_every_object_is_told_and_readable(
    sample: SampleRepository, store: PackStore, gitdir: Path, options: tuple[str, ...]
) -> None:
    pack = sample.pack(*options)
    objects = ingest_whole(store, pack)
    assert {item.oid: (item.kind, item.size) for item in objects} == {
        oid: (kind, len(content)) for oid, (kind, content) in sample.contents.items()
    }
    (stored,) = store.packs()
    assert stored.path.read_bytes() == pack
    assert stored.path.with_suffix(".promisor").exists()
    assert leftovers(store) == []
    odb = ObjectDatabase(gitdir)
    assert all(odb.read(oid) == sample.contents[oid] for oid in sample.oids())
    git(gitdir, "fsck", "--full")


def test_a_delta_before_its_base(store: PackStore) -> None:
    pack = HandmadePack()
    base, made = b"base" * 100, b"base!"
    pack.ref_delta(base, make_delta(base, [(0, 4), b"!"]))
    pack.blob(base)
    objects = ingest_whole(store, pack.finish())
    assert {(item.oid, item.kind, item.size) for item in objects} == {
        (blob_id(base), "blob", 400),
        (blob_id(made), "blob", 5),
    }


def test_an_empty_pack_is_not_kept(store: PackStore) -> None:
    assert ingest_whole(store, HandmadePack().finish()) == []
    assert store.packs() == [] and leftovers(store) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "longer", "nothing"])
def test_a_damaged_pack_is_refused(sample: SampleRepository, store: PackStore, damage: str) -> None:
    pack = sample.pack()
    with pytest.raises(CorruptData):
        ingest_whole(store, damaged(pack, damage))
    assert store.packs() == [] and leftovers(store) == []


def test_a_good_pack_is_stored_also_where_git_fails(
    sample: SampleRepository,
    store: PackStore,
    gitdir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = sample.pack()
    let_git_fail(tmp_path, monkeypatch)
    objects = ingest_whole(store, pack)
    assert {item.oid: (item.kind, item.size) for item in objects} == {
        oid: (kind, len(content)) for oid, (kind, content) in sample.contents.items()
    }
    odb = ObjectDatabase(gitdir)
    assert all(odb.read(oid) == sample.contents[oid] for oid in sample.oids())
    assert leftovers(store) == []


def test_a_full_disk_is_told_as_such(
    sample: SampleRepository, store: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = sample.pack()
    let_git_fail(tmp_path, monkeypatch)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("artifactfs.git.pack.parser.write_bytes", no_space)
    with pytest.raises(OSError) as caught:
        ingest_whole(store, pack)
    assert caught.value.errno == errno.ENOSPC
    assert store.packs() == [] and leftovers(store) == []


@pytest.mark.parametrize("how", ["breaks", "is cancelled"])
@pytest.mark.parametrize("options", [("--window=0",), ("--delta-base-offset", "--window=50")])
def test_whole_objects_survive_a_connection_that(
    sample: SampleRepository, store: PackStore, gitdir: Path, how: str, options: tuple[str, ...]
) -> None:
    small = [oid for oid in sample.oids() if len(sample.contents[oid][1]) < 20_000]
    pack = sample.pack(*options, oids=small)
    interrupt(store.ingest_whole, store, pack, how)
    assert leftovers(store) == []
    assert len(store.packs()) == 1
    odb = ObjectDatabase(gitdir)
    here = [oid for oid in small if odb.contains(oid)]
    assert 0 < len(here) < len(small)
    assert all(odb.read(oid) == sample.contents[oid] for oid in here)
