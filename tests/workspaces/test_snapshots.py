"""Snapshots: going back, and going on elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactfs.errors import InvalidInput, StateError
from artifactfs.workspaces.workspace import Workspace
from tests.e2e.processes import DaemonProcess
from tests.workspaces.conftest import Open, git


def state_of(ws: Workspace) -> tuple[str, bytes, str | None]:
    """What a snapshot must not touch: the status, the index and HEAD."""
    index = ws.git("ls-files", "-s", "-t")
    return index, Path(ws.git("rev-parse", "--git-path", "HEAD").strip()).name.encode(), ws.head


def tree(ws: Workspace) -> dict[str, tuple[bytes, bool]]:
    found = {}
    for path in sorted(ws.path.rglob("*")):
        if path.is_file() and ".git" not in path.relative_to(ws.path).parts:
            executable = bool(path.stat().st_mode & 0o100)
            found[str(path.relative_to(ws.path))] = (path.read_bytes(), executable)
    return found


def make_a_mess(ws: Workspace) -> None:
    """Something staged, changed, removed, new, executable, a symlink, a file for a folder."""
    ws.write("staged", "staged\n")
    ws.git("add", "staged")
    ws.write("staged", "changed after that\n")
    ws.write("README.md", "# Changed\n")
    (ws.path / "src" / "main.c").unlink()
    ws.write("bin/tool", "#!/bin/sh\n", executable=True)
    (ws.path / "link").symlink_to("README.md")
    ws.write("dir/file", "in a folder")
    ws.write("ignored.log", "ignored")


def test_index_and_head_stay(open_workspace: Open) -> None:
    with open_workspace(on_exit="discard") as ws:
        make_a_mess(ws)
        status, before = ws.git("status", "--porcelain", "-uall"), state_of(ws)
        taken = ws.snapshot(message="A mess")
        assert (ws.git("status", "--porcelain", "-uall"), state_of(ws)) == (status, before)
        assert (taken.parent, taken.pushed) == (ws.head, False)
        assert ws.git("log", "-1", "--format=%s", taken.ref) == "A mess\n"
        names = ws.git("ls-tree", "-r", "--name-only", taken.commit).split()
        assert names == [".gitignore", "README.md", "bin/tool", "dir/file", "link", "staged"]
        assert ws.git("show", f"{taken.commit}:staged") == "changed after that\n"
        assert "snapshots" not in ws.git("branch", "-a")


def test_they_are_listed_as_they_were_taken_within_one_second_too(open_workspace: Open) -> None:
    with open_workspace(on_exit="discard") as ws:
        names = [ws.snapshot(name).name for name in ("c", "b", "d", "a")]
        assert [each.name for each in ws.snapshots()] == names
        ws.restore("b")
        assert [each.name for each in ws.snapshots()][:-1] == names


def test_going_back_and_back_again(open_workspace: Open) -> None:
    with open_workspace(on_exit="discard") as ws:
        make_a_mess(ws)
        first, head = tree(ws), ws.head
        early = ws.snapshot("early")
        ws.commit("Later")
        (ws.path / "dir" / "file").unlink()
        (ws.path / "dir").rmdir()
        ws.write("dir", "a file for a folder")
        ws.write("after", "new")
        later, later_head = tree(ws), ws.head
        undo = ws.restore(early)
        assert (tree(ws), ws.head, ws.branch) == (first, head, "main")
        assert ws.git("diff", "--cached", "--name-only") == "", "nothing is staged"
        assert {c.path for c in ws.changes()} == {
            *("README.md", "src/main.c", "staged", "bin/tool", "link", "dir/file"),
        }
        ws.restore(undo)
        assert (tree(ws), ws.head) == (later, later_head)
        assert {c.path for c in ws.changes()} == {"after", "dir", "dir/file"}


def test_going_on_elsewhere(open_workspace: Open, remote: Path) -> None:
    with open_workspace(on_exit="discard") as ws:
        make_a_mess(ws)
        ws.commit("Not pushed otherwise")
        ws.write("more", "more")
        taken = ws.snapshot("half-done", push=True)
        assert taken.pushed and ws.snapshots() == (taken,)
        files, head = tree(ws), ws.head
    assert git("-C", remote, "for-each-ref", "--format=%(refname)") == (
        "refs/artifactfs/snapshots/half-done\nrefs/heads/main"
    )
    with open_workspace() as other:
        other.restore("half-done")
        assert other.head == head
        del files["ignored.log"]
        assert tree(other) == files
        assert not other.unsaved().commits, "the remote has them"
        other.git("stash", "-u")
        other.git("stash", "drop")


def test_bad_names(open_workspace: Open) -> None:
    with open_workspace(on_exit="discard") as ws:
        ws.snapshot("one")
        with pytest.raises(StateError, match="one"):
            ws.snapshot("one")
        for name in ("", "a b", "../x", "-x", "x.lock", "a/b", "x" * 200):
            with pytest.raises(InvalidInput):
                ws.restore(name)
        with pytest.raises(InvalidInput, match="no-such"):
            ws.restore("no-such")


def test_before_the_first_commit(open_workspace: Open, tmp_path: Path) -> None:
    empty = tmp_path / "empty.git"
    git("init", "-q", "--bare", "-b", "main", empty)
    with open_workspace(str(empty), on_exit="discard") as ws:
        ws.write("a", "a")
        taken = ws.snapshot()
        assert (taken.parent, ws.base) == (None, None)
        assert "+a" in ws.diff()
        (ws.path / "a").unlink()
        ws.restore(taken)
        assert ws.read("a") == "a"


def test_looks_at_what_has_changed_alone(
    daemon: DaemonProcess, open_workspace: Open, remote: Path, tmp_path: Path
) -> None:
    """2,000 files, of which none is looked at, and none downloaded."""
    clone = tmp_path / "clone"
    for number in range(2000):
        path = clone / f"many/{number % 50}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n")
    git("-C", clone, "add", "-A")
    git("-C", clone, "commit", "-qm", "Many")
    git("-C", clone, "push", "-q", remote, "main")
    with open_workspace(on_exit="discard") as ws:
        daemon.wait_for(ws.name, "index")
        ws.write("many/1/1", "changed")
        ws.changes()

        def requests() -> dict[str, int]:
            return dict(daemon.status(ws.name)["kernel"]["requests"])

        def here() -> int:
            return int(daemon.status(ws.name)["hydration"]["blobs_here"])

        before, blobs = requests(), here()
        taken = ws.snapshot()
        after = requests()
        asked = sum(after.values()) - sum(before.values())
        assert asked < 200, {k: after[k] - before.get(k, 0) for k in after}
        assert here() == blobs
        assert ws.git("diff", "--name-only", "HEAD", taken.commit) == "many/1/1\n"
