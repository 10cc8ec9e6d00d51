"""Moving the base of a mount to another commit, and compaction."""

from __future__ import annotations

import mmap
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.objects.tree_diff import diff_trees
from tests.fs.mounting import Mount, git
from tests.fs.tree.test_model import differences, snapshot


@pytest.fixture
def history(origin: Path, tmp_path: Path) -> Path:
    """Two commits, tagged `one` and `two`, that differ in every way two trees can."""
    work = tmp_path / "history"
    git("clone", "-q", str(origin), str(work), cwd=tmp_path)
    git("tag", "one", cwd=work)
    (work / "README").write_text("HELLO\n")
    (work / "run.sh").chmod(0o644)
    (work / "empty").unlink()
    (work / "added").write_text("added\n")
    shutil.rmtree(work / "docs")
    (work / "docs").write_text("a file now\n")
    (work / "link").unlink()
    (work / "link").symlink_to("run.sh")
    (work / "big").unlink()
    (work / "big").mkdir()
    (work / "big/inside").write_text("in\n")
    shutil.rmtree(work / "src/deep")
    (work / "src/f1.c").write_text("int changed;\n")
    (work / "fresh/sub").mkdir(parents=True)
    (work / "fresh/sub/file").write_text("fresh\n")
    git("add", "-A", cwd=work)
    git("commit", "-qm", "two", cwd=work)
    git("tag", "two", cwd=work)
    return work


def plain(history: Path, tag: str) -> Path:
    target = history.parent / f"plain-{tag}"
    if not target.exists():
        git("clone", "-q", "-b", tag, str(history), str(target), cwd=history)
        shutil.rmtree(target / ".git")
    return target


def oid(history: Path, tag: str) -> str:
    return git("rev-parse", f"{tag}^{{commit}}", cwd=history).strip()


def assert_equal(mount: Mount, expected: Path) -> None:
    assert differences(snapshot(expected), snapshot(mount.path)) == {}


def test_there_and_back(history: Path, new_mount: Callable[..., Mount]) -> None:
    mount = new_mount(history, "one").start()
    assert_equal(mount, plain(history, "one"))
    before = snapshot(mount.path, exact=True)
    downloads = len(mount.log())
    with open(mount.path / "README"):  # so that the kernel knows it
        result = mount.ask("switch", commit=oid(history, "two"))
    assert result["kept"] == []
    expected = "README run.sh empty added docs/ docs link big big/ src/deep/ src/f1.c fresh/"
    assert sorted(result["changed"]) == sorted(expected.split())
    assert len(mount.log()) == downloads
    assert_equal(mount, plain(history, "two"))
    after = snapshot(mount.path, exact=True)
    assert after["README"][3] != before["README"][3]  # a new mtime, and
    assert after["README"][4] != before["README"][4]  # another file, as with git
    assert after["many/001"] == before["many/001"]
    for tag in ("one", "two", "one"):
        mount.ask("switch", commit=oid(history, tag))
        assert_equal(mount, plain(history, tag))
        mount.restart(kill=tag == "two")
        assert_equal(mount, plain(history, tag))
        assert mount.ask("local_changes") == []


def test_a_folder_has_a_new_mtime_where_its_own_names_change(
    history: Path, new_mount: Callable[..., Mount]
) -> None:
    """As with git, which makes a new file for each that changes, in its folder and nowhere else."""
    (history / "fresh/sub/file").write_text("fresher\n")
    git("commit", "-qam", "three", cwd=history)
    git("tag", "three", cwd=history)
    mount = new_mount(history, "two").start()
    above, folder = mount.path / "fresh", mount.path / "fresh/sub"
    before = [os.stat(path) for path in (mount.path, above, folder)]
    with os.scandir(folder) as entries:
        old = [entry.inode() for entry in entries]
    with open(folder / "file"):  # so that the kernel knows it
        mount.ask("switch", commit=oid(history, "three"))
    after = [os.stat(path) for path in (mount.path, above, folder)]
    changed = [b.st_mtime_ns != a.st_mtime_ns for b, a in zip(before, after, strict=True)]
    assert changed == [False, False, True]
    assert (folder / "file").read_text() == "fresher\n"
    with os.scandir(folder) as entries:
        listed = [entry.inode() for entry in entries]
    assert listed == [os.stat(folder / "file").st_ino] != old


def test_same_sizes_are_not_mixed_up(history: Path, new_mount: Callable[..., Mount]) -> None:
    """README has the same size in both commits: only its mtime tells the kernel."""
    mount = new_mount(history, "one").start()
    for tag, content in (("one", "hello\n"), ("two", "HELLO\n"), ("one", "hello\n")):
        mount.ask("switch", commit=oid(history, tag))
        assert (mount.path / "README").read_text() == content


def test_open_files_go_on_as_on_a_disk(history: Path, new_mount: Callable[..., Mount]) -> None:
    mount = new_mount(history, "one").start()
    with open(mount.path / "README", "rb") as file, open(mount.path / "big", "rb") as big:
        view = mmap.mmap(big.fileno(), 0, prot=mmap.PROT_READ)
        mount.ask("switch", commit=oid(history, "two"))
        assert (mount.path / "README").read_text() == "HELLO\n"
        assert file.read() == b"hello\n"
        assert os.fstat(file.fileno()).st_nlink == 0
        assert view[:1000] == (bytes(range(256)) * 4)[:1000]
        view.close()
    assert_equal(mount, plain(history, "two"))


def test_a_directory_that_is_in_use(history: Path, new_mount: Callable[..., Mount]) -> None:
    mount = new_mount(history, "one").start()
    descriptor = os.open(mount.path / "src/deep", os.O_RDONLY)
    try:
        assert os.listdir(descriptor) == ["er"]
        mount.ask("switch", commit=oid(history, "two"))
        os.stat(".", dir_fd=descriptor)
        with pytest.raises(FileNotFoundError):
            os.mkdir("x", dir_fd=descriptor)
    finally:
        os.close(descriptor)
    assert_equal(mount, plain(history, "two"))


def test_local_changes_stay(history: Path, new_mount: Callable[..., Mount]) -> None:
    mount = new_mount(history, "one").start()
    top = mount.path
    (top / "README").write_text("mine\n")
    (top / "run.sh").unlink()
    (top / "added").write_text("my own\n")
    (top / "docs/mine").write_text("mine\n")
    (top / "many/007").write_text("mine too\n")
    (top / "untracked").write_text("untracked\n")
    os.rename(top / "src/f1.c", top / "src/f9.c")
    result = mount.ask("switch", commit=oid(history, "two"))
    assert sorted(result["kept"]) == ["README", "added", "docs", "run.sh", "src/f1.c"]
    assert (top / "README").read_text() == "mine\n"
    assert not (top / "run.sh").exists()
    assert (top / "added").read_text() == "my own\n"
    assert sorted(os.listdir(top / "docs")) == ["a.txt", "mine"]
    assert (top / "src/f9.c").read_text() == "int f1;\n"
    assert (top / "fresh/sub/file").read_text() == "fresh\n"
    assert (top / "many/007").read_text() == "mine too\n"
    kinds = {path: kind for path, kind in mount.ask("local_changes")}
    assert kinds["README"] == "modified"
    assert kinds["run.sh"] == "deleted"
    assert kinds["untracked"] == "added"


def test_differences_of_trees_equal_those_of_git(history: Path) -> None:
    odb = ObjectDatabase(history / ".git")
    trees = [odb.commit(bytes.fromhex(oid(history, tag))).tree for tag in ("one", "two")]
    ours = {
        (
            change.path.decode("utf-8", "surrogateescape"),
            change.before is None,
            change.after is None,
        )
        for change in diff_trees(odb, *trees)
    }
    lines = git("diff-tree", "-r", "-z", "--name-status", "one", "two", cwd=history).split("\0")
    theirs = {
        (path, status == "A", status == "D")
        for status, path in zip(lines[::2], lines[1::2], strict=False)
    }
    assert ours == theirs


def test_random_trees(origin: Path, new_mount: Callable[..., Mount], tmp_path: Path) -> None:
    """Switching among random trees, with local changes in untracked places, equals checkouts."""
    generator = random.Random(7)
    work = tmp_path / "history"
    git("init", "-q", "-b", "main", str(work), cwd=tmp_path)
    commits = []
    for _ in range(6):
        for _ in range(12):
            path = work / "/".join(generator.choice("abc") for _ in range(generator.randint(1, 4)))
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()
            if generator.random() < 0.7:
                for parent in reversed(path.relative_to(work).parents):
                    if (work / parent).is_file():
                        (work / parent).unlink()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{generator.randint(0, 9)}\n")
        git("add", "-A", cwd=work)
        git("commit", "-qm", "x", "--allow-empty", cwd=work)
        commits.append(git("rev-parse", "HEAD", cwd=work).strip())
    mount = new_mount(work, commits[0]).start()
    (mount.path / "local").write_text("local\n")
    for step in range(12):
        commit = generator.choice(commits)
        git("checkout", "-q", "-f", commit, cwd=work)
        result = mount.ask("switch", commit=commit)
        assert result["kept"] == []
        found = snapshot(mount.path)
        assert found.pop("local")
        expected = {key: value for key, value in snapshot(work).items() if key[:4] != ".git"}
        assert differences(expected, found) == {}, f"step {step}"
        if step % 4 == 3:
            mount.restart(kill=True)
    assert mount.ask("local_changes") == [["local", "added"]]


def test_compaction(mount: Mount) -> None:
    mount.make_gitdir()
    top = mount.path
    for name in ("README", "src/f1.c", "docs/a.txt", "src/f2.c"):
        content = (top / name).read_bytes()
        (top / name).unlink()
        (top / name).write_bytes(content)
    (top / "src/f2.c").write_text("int F2;\n")  # the same size, other content
    (top / "untracked").write_text("hello\n")
    os.utime(top / "docs/a.txt", ns=(1, 10**18 + 7))
    held = open(top / "src/f1.c", "r+b")  # noqa: SIM115 - it goes on working
    content = held.read()
    before = snapshot(top, exact=True)
    assert mount.ask("stats")["dirty_files"] == 5
    assert mount.ask("compact") == 0  # no promisor pack: the objects are only local
    git("repack", "-adq", cwd=mount.path)
    for pack in (mount.layout / "git/objects/pack").glob("pack-*.pack"):
        pack.with_suffix(".promisor").touch()
    assert mount.ask("compact") == 3
    assert mount.ask("compact") == 0
    assert mount.ask("stats") == {"dirty_files": 2, "dirty_bytes": 14}
    assert snapshot(top, exact=True) == before
    assert os.pread(held.fileno(), 100, 0) == content
    held.write(b"more\n")
    held.close()
    assert (top / "src/f1.c").read_bytes() == content + b"more\n"
    (top / "src/f1.c").write_bytes(content)
    os.utime(top / "src/f1.c", ns=(1, 10**18 + 7))
    assert mount.ask("compact") == 1
    before["src/f1.c"] = snapshot(top, exact=True)["src/f1.c"]
    assert snapshot(top, exact=True) == before
    mount.restart(kill=True)
    assert snapshot(top, exact=True) == before
    assert sorted(mount.ask("local_changes")) == [["src/f2.c", "modified"], ["untracked", "added"]]
    (top / "README").write_text("again dirty\n")
    assert (top / "README").read_text() == "again dirty\n"


def test_stat_for_the_index_is_that_of_the_mount(mount: Mount) -> None:
    (mount.path / "src/f1.c").write_text("changed\n")
    (mount.path / "docs").rename(mount.path / "papers")
    for path in ("README", "src/f1.c", "papers/a.txt", "link", "run.sh"):
        status = (mount.path / path).lstat()
        assert mount.ask("stat", path=path) == [
            status.st_ino,
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ]
