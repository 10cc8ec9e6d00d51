"""The object database, against what real git says is in a repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifactfs.errors import CorruptData
from artifactfs.git.objects import database
from artifactfs.git.objects.database import MissingObject, ObjectDatabase, TreeEntry
from artifactfs.git.objects.format import parse_commit, parse_tree
from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.store import PackStore
from tests.git.pack_samples import SampleRepository, git, ingest


@pytest.fixture(params=["loose", "packed", "repacked"])
def gitdir(request: pytest.FixtureRequest, sample: SampleRepository, tmp_path: Path) -> Path:
    """The sample's objects, stored in different ways."""
    gitdir = tmp_path / "copy.git"
    git(tmp_path, "init", "-q", "--bare", str(gitdir))
    if request.param == "loose":
        shutil.copytree(sample.gitdir / "objects", gitdir / "objects", dirs_exist_ok=True)
    else:
        options = ["--window=0"] if request.param == "packed" else ["--depth=50", "--window=50"]
        git(gitdir, "index-pack", "--stdin", data=sample.pack(*options))
    return gitdir


def test_every_object_reads_as_git_prints_it(gitdir: Path, sample: SampleRepository) -> None:
    odb = ObjectDatabase(gitdir)
    for oid, (kind, content) in sample.contents.items():
        assert odb.read(oid) == (kind, content)
        assert odb.header_size(oid) == len(content)
        assert odb.contains(oid)
        if kind == "blob":
            assert odb.blob(oid) == content


@pytest.mark.parametrize("count", [3, 60], ids=["few", "many"])
def test_what_is_missing_is_told_from_what_is_here(
    gitdir: Path, sample: SampleRepository, count: int
) -> None:
    odb = ObjectDatabase(gitdir)
    here = list(sample.contents)[:count]
    # Some begin like objects that are here, so their folders of loose objects exist.
    absent = [oid[:1] + bytes([number]) * 19 for number, oid in enumerate(here)]
    mixed = [oid for pair in zip(absent, here, strict=True) for oid in pair]
    assert odb.missing(mixed) == absent
    assert odb.missing_sorted(sorted(mixed)) == sorted(absent)
    (gitdir / "objects" / "7b").mkdir(exist_ok=True)
    assert odb.missing([b"\x7b" * 20] * count) == [b"\x7b" * 20] * count


def test_blobs_are_exported_to_files(
    gitdir: Path, sample: SampleRepository, tmp_path: Path
) -> None:
    odb = ObjectDatabase(gitdir)
    for oid, (kind, content) in sample.contents.items():
        if kind == "blob":
            with open(tmp_path / "out", "w+b", buffering=0) as file:
                assert odb.export_blob(oid, file.fileno()) == len(content)
            assert (tmp_path / "out").read_bytes() == content


def test_trees_have_exact_names_and_modes(sample: SampleRepository) -> None:
    odb = ObjectDatabase(sample.gitdir)
    tree = sample.resolve("main^{tree}")
    listed = []
    for line in git(sample.path, "ls-tree", "-z", "main").split(b"\0")[:-1]:
        words, name = line.split(b"\t", 1)
        mode, _, oid = words.split(b" ")
        listed.append(TreeEntry(name, int(mode, 8), bytes.fromhex(oid.decode())))
    assert odb.tree(tree) == listed
    assert b"caf\xe9 \xff" in {entry.name for entry in listed}
    assert {0o100644, 0o100755, 0o120000, 0o40000} <= {entry.mode for entry in listed}


@pytest.mark.parametrize(
    ("committer", "seconds"),
    [
        (b"a <a> 12 +0000", 12),
        (b"a <a>12", 12),
        (b"a 34 <a> 12 +0000 junk", 12),
        (b"a <a>", 0),
        (b"a", 0),
        (b"a <a> -5 +0000", 0),
        (b"a <a> 99999999999999999 +0000", 1 << 33),
    ],
)
def test_the_time_of_a_commit_that_is_not_well_formed(committer: bytes, seconds: int) -> None:
    content = b"tree %b\ncommitter %b\nencoding \xff\n\nx" % (b"0" * 40, committer)
    assert parse_commit(bytes(20), content).commit_time == seconds


@pytest.mark.parametrize("mode", [b"-4", b"777777777777777777777", b"9", b""])
def test_a_tree_with_an_impossible_mode(mode: bytes) -> None:
    with pytest.raises(CorruptData):
        parse_tree(mode + b" name\0" + bytes(20))


@pytest.mark.parametrize("name", [b"tree 12", b"tree %b" % (b"0" * 64), b"parent 12"])
def test_a_commit_with_an_impossible_name(name: bytes) -> None:
    with pytest.raises(CorruptData):
        parse_commit(bytes(20), b"tree %b\n%b\n\nx" % (b"0" * 40, name))


def test_commits(sample: SampleRepository) -> None:
    odb = ObjectDatabase(sample.gitdir)
    commit = odb.commit(sample.resolve("main"))
    assert commit.oid == sample.resolve("main")
    assert commit.tree == sample.resolve("main^{tree}")
    assert commit.parents == (sample.resolve("main~1"),)
    assert commit.message == "Version 2\n\nA body.\n"
    assert commit.commit_time == int(git(sample.path, "log", "-1", "--format=%ct", "main"))
    assert odb.commit(sample.resolve("main~2")).parents == ()
    assert odb.commit(sample.resolve("v1")) == commit


def test_what_is_not_here(sample: SampleRepository, tmp_path: Path) -> None:
    odb = ObjectDatabase(sample.gitdir)
    nowhere = bytes(20)
    assert odb.blob(nowhere) is None
    assert odb.header_size(nowhere) is None
    assert not odb.contains(nowhere)
    with pytest.raises(MissingObject) as raised:
        odb.tree(nowhere)
    assert raised.value.oid == nowhere
    with pytest.raises(MissingObject):
        odb.commit(nowhere)
    with open(tmp_path / "out", "w+b") as file:
        assert odb.export_blob(nowhere, file.fileno()) is None


def test_another_kind_than_asked_for(sample: SampleRepository) -> None:
    odb = ObjectDatabase(sample.gitdir)
    blob = sample.resolve("main:text")
    for ask in (odb.tree, odb.commit):
        with pytest.raises(CorruptData, match="is a blob"):
            ask(blob)
    with pytest.raises(CorruptData, match="is a tree"):
        odb.blob(sample.resolve("main^{tree}"))


def test_what_is_too_large_to_be_held(
    gitdir: Path, sample: SampleRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of trees and commits; a blob is asked for by who knows its size."""
    monkeypatch.setattr(database, "MAX_IN_MEMORY", 20)
    odb = ObjectDatabase(gitdir)
    with pytest.raises(CorruptData, match=r"is a tree of .* bytes: too large"):
        odb.tree(sample.resolve("main^{tree}"))
    with pytest.raises(CorruptData, match=r"is a commit of .* bytes: too large"):
        odb.commit(sample.resolve("main"))
    assert odb.blob(sample.resolve("main:text"))


def test_the_empty_tree_needs_no_object(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    odb = ObjectDatabase(tmp_path / ".git")
    assert odb.tree(bytes.fromhex("4b825dc642cb6eb9a060e54bf8d69288fbee4904")) == []


def test_new_packs_are_seen_without_being_told(sample: SampleRepository, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "repo.git")
    gitdir = tmp_path / "repo.git"
    store = PackStore(gitdir / "objects")
    odb = ObjectDatabase(gitdir)
    for oid, (_, content) in list(sample.contents.items())[:20]:
        assert not odb.contains(oid)
        ingest(store, sample.pack(oids=[oid]))
        assert odb.read(oid) == sample.contents[oid]
        assert odb.header_size(oid) == len(content)


def test_alternates_are_followed(sample: SampleRepository, tmp_path: Path) -> None:
    for name, alternate in (("one", "../../two/objects"), ("two", str(sample.gitdir / "objects"))):
        git(tmp_path, "init", "-q", "--bare", name)
        info = tmp_path / name / "objects" / "info"
        (info / "alternates").write_text(f"# shared objects\n{alternate}\n")
    odb = ObjectDatabase(tmp_path / "one")
    assert all(odb.read(oid) == expected for oid, expected in sample.contents.items())


def test_an_alternate_that_comes_later(sample: SampleRepository, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "late")
    odb = ObjectDatabase(tmp_path / "late")
    oid = sample.resolve("main:text")
    assert not odb.contains(oid)
    alternates = tmp_path / "late" / "objects" / "info" / "alternates"
    alternates.write_text(f"{sample.gitdir}/objects\n")
    assert odb.contains(oid)


def test_gc_and_eviction_under_an_open_database(sample: SampleRepository, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", "--no-local", str(sample.path), str(copy))
    odb = ObjectDatabase(copy / ".git")
    first = git(copy, "rev-parse", "HEAD^{tree}").decode()
    assert odb.tree(bytes.fromhex(first))
    (copy / "more").write_text("more")
    git(copy, "add", "-A")
    git(copy, "-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "More")
    git(copy, "gc", "-q", "--prune=now")
    for line in git(copy, "rev-list", "--objects", "HEAD").splitlines():
        assert odb.read(bytes.fromhex(line[:40].decode())) is not None
    odb.refresh()
    open_files = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    }
    assert not any("copy" in name and "(deleted)" in name for name in open_files)


def test_a_linked_worktree(sample: SampleRepository, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", str(sample.path), str(copy))
    git(copy, "worktree", "add", "-q", "--detach", str(tmp_path / "linked"))
    odb = ObjectDatabase(copy / ".git" / "worktrees" / "linked")
    assert odb.blob(sample.resolve("main:text")) == sample.contents[sample.resolve("main:text")][1]


def test_from_many_threads(sample: SampleRepository, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "repo.git")
    git(tmp_path / "repo.git", "index-pack", "--stdin", data=sample.pack("--window=50"))
    odb = ObjectDatabase(tmp_path / "repo.git")
    oids = sample.oids() * 10
    with ThreadPoolExecutor(8) as pool:
        for oid, found in zip(oids, pool.map(odb.read, oids), strict=True):
            assert found == sample.contents[oid]


def test_packs_that_were_read_are_known(sample: SampleRepository, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "repo.git")
    store = PackStore(tmp_path / "repo.git" / "objects")
    one, two = sample.resolve("main:text"), sample.resolve("main:empty")
    names = [ingest(store, sample.pack(oids=[oid])).name for oid in (one, two)]
    odb = ObjectDatabase(tmp_path / "repo.git")
    assert odb.drain_used() == []
    odb.blob(two)
    odb.blob(two)
    assert [path.stem for path in odb.drain_used()] == names[1:]
    assert odb.drain_used() == []


# Damage on the disk: right bytes, or not here. Never wrong bytes, never another exception.


@pytest.fixture(scope="module")
def small(sample: SampleRepository) -> list[bytes]:
    return [oid for oid, found in sample.contents.items() if len(found[1]) < 3000]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_packs_are_never_believed(
    small: list[bytes],
    sample: SampleRepository,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    store = PackStore(directory / "objects")
    pack = sample.pack("--delta-base-offset", "--window=50", oids=small)
    name = ingest(store, pack).name
    suffix = data.draw(st.sampled_from(["pack", "idx"]), label="file")
    victim = directory / "objects" / "pack" / f"{name}.{suffix}"
    content = bytearray(victim.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1), label="at") :]
    else:
        for _ in range(data.draw(st.integers(1, 20), label="flips")):
            at = data.draw(st.integers(0, len(content) - 1), label="at")
            content[at] ^= data.draw(st.integers(1, 255), label="bits")
    victim.chmod(0o644)
    victim.unlink()
    victim.write_bytes(content)
    odb = ObjectDatabase(directory)
    damaged = False
    for oid in small:
        found = odb.read(oid)
        assert found is None or found == sample.contents[oid]
        odb.header_size(oid)
        damaged |= found is None
    if not damaged:
        return
    corrupt = odb.drain_corrupt()
    for path in corrupt:
        store.drop(path.stem)
    ingest(store, pack)
    odb.refresh()
    assert all(odb.read(oid) == sample.contents[oid] for oid in small)


def test_what_was_found_damaged_is_absent(
    small: list[bytes], sample: SampleRepository, tmp_path: Path
) -> None:
    store = PackStore(tmp_path / "objects")
    name = ingest(store, sample.pack("--window=0", oids=small)).name
    odb = ObjectDatabase(tmp_path)
    oids = sorted(small)
    assert odb.missing_sorted(oids) == odb.missing(oids) == []
    assert odb.missing_sorted([]) == []
    path = tmp_path / "objects" / "pack" / f"{name}.pack"
    path.chmod(0o644)
    with path.open("r+b") as file:  # the one that is open
        file.write(bytes(path.stat().st_size))
    assert odb.read(oids[-1]) is None
    assert odb.missing_sorted(oids) == odb.missing(oids) == [oids[-1]]


def test_a_good_copy_is_found_behind_a_corrupt_one(
    sample: SampleRepository, tmp_path: Path
) -> None:
    store = PackStore(tmp_path / "objects")
    oid = sample.resolve("main:text")
    name = ingest(store, sample.pack(oids=[oid])).name
    path = tmp_path / "objects" / "pack" / f"{name}.pack"
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.unlink()
    path.write_bytes(content)
    odb = ObjectDatabase(tmp_path)
    assert odb.blob(oid) is None
    assert not odb.contains(oid)
    assert odb.drain_corrupt() == [path]
    ingest(store, sample.pack(oids=[oid, sample.resolve("main:empty")]))
    assert odb.blob(oid) == sample.contents[oid][1]
    with open(tmp_path / "out", "w+b", buffering=0) as file:
        assert odb.export_blob(oid, file.fileno()) == len(sample.contents[oid][1])


def test_damaged_loose_objects_are_not_here(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    content = b"some content " * 50
    oid = packformat.object_id("blob", content)
    path = tmp_path / ".git" / "objects" / oid.hex()[:2] / oid.hex()[2:]
    path.parent.mkdir()
    raw = b"blob %d\0" % len(content) + content
    good = zlib.compress(raw)
    odb = ObjectDatabase(tmp_path / ".git")
    for bad in (
        b"",
        b"garbage",
        good[:20],
        zlib.compress(raw[:-1]),
        zlib.compress(raw + b"x"),
        zlib.compress(b"blob 5\0other"),
        zlib.compress(b"thing 1\0x"),
        zlib.compress(b"no header"),
    ):
        path.write_bytes(bad)
        assert odb.blob(oid) is None
        with open(tmp_path / "out", "w+b", buffering=0) as file:
            assert odb.export_blob(oid, file.fileno()) is None
            assert os.fstat(file.fileno()).st_size == 0
    path.write_bytes(good)
    assert odb.blob(oid) == content


def test_git_agrees_after_all_of_this(sample: SampleRepository) -> None:
    subprocess.run(["git", "-C", str(sample.path), "fsck", "--strict"], check=True)


def test_an_index_that_is_cut_while_it_is_open(sample: SampleRepository, tmp_path: Path) -> None:
    """It is named where something is missed, and used again when it is whole."""
    git(tmp_path, "init", "-q", "--bare", "repo.git")
    gitdir = tmp_path / "repo.git"
    trees = [oid for oid, (kind, _) in sample.contents.items() if kind == "tree"][:20]
    git(gitdir, "index-pack", "--stdin", data=sample.pack(oids=trees))
    (index,) = (gitdir / "objects/pack").glob("*.idx")
    odb, told = ObjectDatabase(gitdir), list[Path]()
    odb.on_corrupt = told.append
    whole = index.read_bytes()
    assert len(whole) < 4096  # all in one page: who looks behind it would be ended
    index.chmod(0o644)
    os.truncate(index, 1080)
    with pytest.raises(MissingObject):
        odb.whole_tree(trees[0])
    assert told[-1] == index
    assert odb.drain_corrupt() == [index.with_suffix(".pack")]
    index.write_bytes(whole)
    assert [odb.read(oid) for oid in trees] == [sample.contents[oid] for oid in trees]
