"""What is read of an upper folder, beside what the kernel's overlayfs shows of it.

No mount of ours is needed for that: the base tree is a plain checkout.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from artifactfs.daemon.writes import record
from artifactfs.daemon.writes.rebase import rebase
from artifactfs.fs.gitview.journal import EVERYTHING
from artifactfs.fs.inodes.inode import Owner, mode_of_entry
from artifactfs.fs.native.journal import UpperJournal
from artifactfs.fs.native.looks import Look, differences, look, stamps_of
from artifactfs.fs.native.marks import MOUNT_OPTIONS
from artifactfs.fs.native.stamps import changed_paths
from artifactfs.fs.native.view import File, Folder, View
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.paths import RepoLayout
from tests.fs.mounting import git

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")

OWNER = Owner(0, 0)
FILES = ("README", "src/a", "src/deep/b", "src/deep/er/c", "docs/c", "docs/d/e", "docs/d/f")
Seen = dict[bytes, tuple[int, int, bytes]]


@dataclass(slots=True)
class Layers:
    """A repository, and an overlayfs above a checkout of one of its commits."""

    directory: Path

    @property
    def layout(self) -> RepoLayout:
        return RepoLayout(self.directory / "repo")

    @property
    def work(self) -> Path:
        return self.directory / "work"

    @contextmanager
    def mounted(self, commit: str) -> Iterator[Path]:
        lower, merged = self.directory / f"lower-{commit}", self.directory / "merged"
        if not lower.exists():
            git("clone", "-q", str(self.work), str(lower), cwd=self.directory)
            git("checkout", "-q", "--detach", commit, cwd=lower)
            shutil.rmtree(lower / ".git")
        native = self.layout.native
        layers = f"lowerdir={lower},upperdir={native}/upper,workdir={native}/work"
        merged.mkdir(exist_ok=True)
        options = f"{layers},{MOUNT_OPTIONS}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "o", merged], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", merged], check=True)

    def view(self, commit: str) -> View:
        odb = ObjectDatabase(self.layout.gitdir)
        tree = odb.commit(bytes.fromhex(commit)).tree
        return View(os.fsencode(self.layout.native_upper), odb.tree, tree)

    def commit(self) -> str:
        git("add", "-A", cwd=self.work)
        git("commit", "-qm", "Step", "--allow-empty", cwd=self.work)
        return git("rev-parse", "HEAD", cwd=self.work).strip()


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    found = Layers(tmp_path)
    for name in FILES:
        path = found.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    (found.work / "link").symlink_to("README")
    (found.work / "src/a").chmod(0o755)
    git("init", "-q", "-b", "main", ".", cwd=found.work)
    for folder in (found.layout.native_upper, found.layout.native_work):
        folder.mkdir(parents=True)
    found.layout.gitdir.symlink_to(found.work / ".git")
    return found


def shown(top: Path) -> Seen:
    """What the kernel shows."""
    seen: Seen = {}
    for place, folders, files in os.walk(os.fsencode(top)):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            found = os.lstat(path)
            content = b""
            if stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(found.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            key = os.path.relpath(path, os.fsencode(top))
            seen[key] = (stat.S_IFMT(found.st_mode), found.st_mode & 0o100, content)
    return seen


def read(view: View, odb: ObjectDatabase, folder: Folder | None = None) -> Seen:
    """The same, as it is read without the kernel."""
    seen: Seen = {}
    for node in view.children(folder or view.top).values():
        if isinstance(node, Folder):
            seen[node.path] = (stat.S_IFDIR, 0o100, b"")
            seen |= read(view, odb, node)
        else:
            seen[node.path] = _file(node, odb)
    return seen


def _file(file: File, odb: ObjectDatabase) -> tuple[int, int, bytes]:
    found = file.status()
    mode = found.st_mode if found is not None else mode_of_entry(file.entry.mode)  # type: ignore[union-attr]
    if file.entry is not None:
        content = odb.blob(file.entry.oid) or b""
    else:
        path = Path(os.fsdecode(file.upper or b""))
        content = os.fsencode(os.readlink(path)) if stat.S_ISLNK(mode) else path.read_bytes()
    return stat.S_IFMT(mode), mode & 0o100, content


def change(top: Path, choose: random.Random, steps: int) -> None:
    def path() -> Path:
        folders = [Path(place) for place, _, _ in os.walk(top)]
        folder = choose.choice(folders)
        there = sorted(os.listdir(folder))
        return folder / choose.choice([*there, "new", "a", "d"])

    for _ in range(steps):
        one, other, what = path(), path(), choose.randrange(9)
        with suppress(OSError, shutil.Error):
            if what < 3:
                one.rename(other)
            elif what == 3:
                one.write_text(f"{choose.random()}\n")
            elif what == 4:
                one.unlink()
            elif what == 5:
                one.mkdir()
            elif what == 6 and one.is_file() and not one.is_symlink():
                one.chmod(choose.choice([0o644, 0o755]))
            elif what == 7 and one != top and not one.is_symlink() and choose.random() < 0.3:
                shutil.rmtree(one)
            elif what == 8:
                one.write_text(choose.choice([f"{name}\n" for name in FILES]))


@pytest.mark.parametrize("seed", range(6))
def test_the_view_is_what_the_kernel_shows(layers: Layers, seed: int) -> None:
    commit = layers.commit()
    odb = ObjectDatabase(layers.layout.gitdir)
    choose = random.Random(seed)
    for _ in range(3):
        with layers.mounted(commit) as merged:
            change(merged, choose, 25)
            expected = shown(merged)
        assert read(layers.view(commit), odb) == expected


def described(found: Look) -> dict[bytes, object]:
    return {
        path: (
            (seen.stamp, seen.own, seen.top, seen.moved, seen.over_file, seen.place),
            (set(seen.folders), seen.files, seen.covering, set(seen.below)),
        )
        for path, seen in found.items()
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_look_at_what_changed_finds_what_a_look_at_everything_does(
    layers: Layers, seed: int
) -> None:
    commit = layers.commit()
    choose, view = random.Random(seed), layers.view(commit)
    with layers.mounted(commit) as merged:
        found = look(view, {})
        for _ in range(30):
            change(merged, choose, choose.randrange(4))
            time.sleep(0.03)  # else some of it is too young to be compared
            packed = stamps_of(found)
            assert packed is not None
            before, found = found, look(view, found, changed_paths(view.upper, packed))
            whole = look(view, {})
            assert described(found) == described(whole)
            assert differences(before, found) == differences(before, whole)


def sync_tree(source: Seen, target: Path) -> None:
    """Make the working tree as `source` is."""
    for path in target.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, (kind, executable, content) in sorted(source.items()):
        path = target / os.fsdecode(name)
        if kind == stat.S_IFDIR:
            path.mkdir()
        elif kind == stat.S_IFLNK:
            path.symlink_to(os.fsdecode(content))
        else:
            path.write_bytes(content)
            path.chmod(0o755 if executable else 0o644)


class Everything:
    """Says that the remote has every object."""

    def __init__(self, _gitdir: Path) -> None: ...

    def __contains__(self, _oid: Oid) -> bool:
        return True


@pytest.mark.parametrize("seed", range(8))
def test_another_base_shows_the_same(
    layers: Layers, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is what the tree was at some moment; then it was changed further."""
    monkeypatch.setattr("artifactfs.daemon.writes.rebase.PromisedObjects", Everything)
    monkeypatch.setattr(record, "finish_move_in", lambda *_: None)
    base = layers.commit()
    choose = random.Random(seed)
    with layers.mounted(base) as merged:
        change(merged, choose, 25)
        at_commit = shown(merged)
        if seed % 2:
            change(merged, choose, 6)
        expected = shown(merged)
    sync_tree(at_commit, layers.work)
    commit = layers.commit()
    odb = ObjectDatabase(layers.layout.gitdir)
    tree = odb.commit(bytes.fromhex(base)).tree
    meta = {"base_commit": bytes.fromhex(base), "base_tree": tree, "base_time_ns": 0}
    meta["ino_secret"] = b""
    moved = rebase(layers.layout, odb, meta, OWNER, bytes.fromhex(commit))
    now = commit if moved else base
    with layers.mounted(now) as merged:
        assert shown(merged) == expected
    assert read(layers.view(now), odb) == expected
    if not seed % 2:
        assert moved
        left = shown(layers.layout.native_upper)
        assert not [path for path, seen in left.items() if seen[0] == stat.S_IFREG]


def test_a_damaged_list_of_what_was_changed_is_not_believed(layers: Layers, tmp_path: Path) -> None:
    """A name that was there and is not any more is nowhere else: git would go on showing it."""
    view = layers.view(layers.commit())
    written = layers.layout.native_upper / "came-and-went"
    file = tmp_path / "fsmonitor"
    journal = UpperJournal(file, view, tmp_path / "index")
    journal.update()
    written.touch()
    journal.update()
    token = journal.answer("").partition(b"\0")[0].decode()
    written.unlink()
    journal.update()
    assert b"came-and-went" in journal.answer(token)
    content = file.read_bytes()
    assert b"came-and-went" in UpperJournal(file, view, tmp_path / "index").answer(token)
    changed = [
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(len(content))
    ]
    for damaged in (b"", content[: len(content) // 2], content[:-1], *changed):
        file.write_bytes(damaged)
        answer = UpperJournal(file, view, tmp_path / "index").answer(token).split(b"\0", 1)[1]
        assert answer == EVERYTHING or b"came-and-went" in answer
