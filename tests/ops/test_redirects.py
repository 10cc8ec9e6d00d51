"""Folders of a working tree on the local disk, by bind mount and by symlink."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactfs.daemon.host import redirects
from artifactfs.daemon.host.mounts import mounts_at
from artifactfs.daemon.host.redirects import Tree
from artifactfs.errors import AlreadyExists, CorruptData, InvalidInput, MountError, NotRegistered
from artifactfs.paths import RepoLayout
from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until


def git(tree: Tree, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", tree.mount_point, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A repository whose working tree is a mount of its own, as ArtifactFS's is."""
    layout = RepoLayout(tmp_path / "state")
    layout.directory.mkdir()
    mount_point = tmp_path / "tree"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount_point], check=True)
    try:
        made = Tree(layout, mount_point, layout.gitdir)
        subprocess.run(
            ["git", "init", "-q", "-b", "main", f"--separate-git-dir={made.gitdir}", mount_point],
            check=True,
        )
        (mount_point / "src").mkdir()
        (mount_point / "src" / "main.py").write_text("pass\n")
        git(made, "add", ".")
        git(made, "commit", "-q", "-m", "First")
        yield made
    finally:
        subprocess.run(["umount", "--lazy", mount_point], check=True)


def mount_again(tree: Tree) -> list[redirects.Redirect]:
    """What happens at a mount; the redirections that are in place then."""

    def make_folder(path: bytes) -> None:
        folder = tree.mount_point
        for name in os.fsdecode(path).split("/"):
            folder /= name
            if folder.is_symlink():
                raise NotADirectoryError(folder)
            folder.mkdir(exist_ok=True)

    def make_link(path: bytes, target: str) -> None:
        link = tree.mount_point / os.fsdecode(path)
        make_folder(os.fsencode(link.parent.relative_to(tree.mount_point)))
        if not link.is_symlink():
            link.symlink_to(target)

    prepared = redirects.prepare(tree, make_folder, make_link)
    redirects.place(tree, prepared)
    return [one for one in prepared if redirects.active(tree, one)]


both = pytest.mark.parametrize("method", redirects.METHODS)


@both
def test_writes_go_to_the_local_disk(tree: Tree, method: str) -> None:
    made = redirects.add(tree, "web/node_modules", method=method)
    folder = tree.mount_point / "web" / "node_modules"
    (folder / "left-pad.js").write_text("x")
    assert (tree.data(made) / "left-pad.js").read_text() == "x"
    assert folder.is_symlink() == (method == "symlink")
    assert redirects.active(tree, made)


@both
def test_git_does_not_see_it(tree: Tree, method: str) -> None:
    redirects.add(tree, "odd [name]*", method=method)
    (tree.mount_point / "odd [name]*" / "file").write_text("x")
    assert git(tree, "status", "--porcelain", "--untracked-files=all") == ""
    (tree.mount_point / "odd name").mkdir()
    (tree.mount_point / "odd name" / "seen").write_text("x")
    assert "seen" in git(tree, "status", "--porcelain", "--untracked-files=all")


@both
def test_it_is_listed_and_undone(tree: Tree, method: str) -> None:
    made = redirects.add(tree, "target", method=method)
    assert redirects.redirects_of(tree.layout) == [made]
    redirects.remove(tree, "target")
    assert redirects.redirects_of(tree.layout) == []
    assert not os.path.lexists(tree.mount_point / "target")
    assert not tree.data(made).exists()
    exclude = (tree.gitdir / "info" / "exclude").read_text()
    assert "target" not in exclude and "artifact-fs redirect" not in exclude


@both
def test_what_is_in_it_is_not_lost(tree: Tree, method: str) -> None:
    redirects.add(tree, "target", method=method)
    (tree.mount_point / "target" / "app").write_text("built")
    with pytest.raises(InvalidInput, match="not empty"):
        redirects.remove(tree, "target")
    redirects.remove(tree, "target", keep=True)
    assert (tree.mount_point / "target" / "app").read_text() == "built"
    assert not mounts_at(str(tree.mount_point / "target"))


@both
def test_discard(tree: Tree, method: str) -> None:
    redirects.add(tree, "target", method=method)
    (tree.mount_point / "target" / "app").write_text("built")
    redirects.remove(tree, "target", discard=True)
    assert not (tree.mount_point / "target").exists()


@both
def test_files_that_are_there_are_taken_along(tree: Tree, method: str) -> None:
    (tree.mount_point / "target" / "deep").mkdir(parents=True)
    (tree.mount_point / "target" / "deep" / "app").write_text("built")
    with pytest.raises(InvalidInput, match="not empty"):
        redirects.add(tree, "target", method=method)
    made = redirects.add(tree, "target", method=method, move=True)
    assert (tree.data(made) / "deep" / "app").read_text() == "built"
    assert (tree.mount_point / "target" / "deep" / "app").read_text() == "built"


def test_a_bind_mount_comes_back_with_the_mount(tree: Tree) -> None:
    made = redirects.add(tree, "target", method="bind")
    (tree.mount_point / "target" / "app").write_text("built")
    redirects.release(tree)
    assert not redirects.active(tree, made)
    assert mount_again(tree) == [made]
    assert (tree.mount_point / "target" / "app").read_text() == "built"
    assert len(mounts_at(str(tree.mount_point / "target"))) == 1
    assert mount_again(tree) == [made]
    assert len(mounts_at(str(tree.mount_point / "target"))) == 1


def test_without_privileges_it_is_a_symlink(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirects, "may_mount", lambda: False)
    assert redirects.add(tree, "target").method == "symlink"


def test_tracked_folders_stay_where_they_are(tree: Tree) -> None:
    with pytest.raises(InvalidInput, match=r"tracked files \(src/main.py\)"):
        redirects.add(tree, "src", move=True)
    assert (tree.mount_point / "src" / "main.py").exists()


def test_one_inside_the_other_is_refused(tree: Tree) -> None:
    redirects.add(tree, "a/b")
    for path in ("a/b", "a", "a/b/c"):
        with pytest.raises(AlreadyExists):
            redirects.add(tree, path)


@pytest.mark.parametrize("path", ["/etc", "../x", ".", "a/../..", ".git/x", "x\0y"])
def test_paths_outside_the_tree_are_refused(tree: Tree, path: str) -> None:
    with pytest.raises(InvalidInput):
        redirects.add(tree, path)


@both
def test_a_symlink_of_the_tree_leads_nowhere_else(tree: Tree, tmp_path: Path, method: str) -> None:
    """A checkout may put one in the place of a folder above: nothing is made outside then."""
    outside = tmp_path / "outside"
    outside.mkdir()
    redirects.add(tree, "web/target", method=method)
    redirects.release(tree)
    os.rename(tree.mount_point / "web", tree.mount_point / "old")
    (tree.mount_point / "web").symlink_to(outside)
    assert mount_again(tree) == []
    assert not os.listdir(outside)
    with pytest.raises(InvalidInput, match="out of the tree"):
        redirects.add(tree, "web/other", method=method)


def test_what_was_taken_along_is_put_back(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where mounting is refused after all, as AppArmor does in a container."""

    def refuse(*_folders: Path) -> None:
        raise MountError("mount: permission denied")

    monkeypatch.setattr(redirects, "bind", refuse)
    (tree.mount_point / "target").mkdir()
    (tree.mount_point / "target" / "built").write_text("x")
    with pytest.raises(MountError):
        redirects.add(tree, "target", method="bind", move=True)
    assert (tree.mount_point / "target" / "built").read_text() == "x"
    monkeypatch.undo()
    redirects.add(tree, "target", method="symlink", move=True)
    assert (tree.mount_point / "target" / "built").read_text() == "x"


def test_a_damaged_list_costs_the_redirections_alone(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    mount = daemon.add_repo("odd", remote_repo().url)
    folder = daemon.state / "repos" / "odd" / "redirects"
    folder.mkdir()
    (folder / "list.json").write_text("{")
    daemon.run("remount", "--name", "odd", "--restart")
    assert (mount / "README.md").exists()
    assert "no folder is redirected" in daemon.log.read_text()
    daemon.run("unmount", "--name", "odd")


def test_a_changed_entry_is_never_followed(tree: Tree) -> None:
    redirects.add(tree, "target", method="symlink")
    file = tree.layout.redirects / "list.json"
    file.write_text(file.read_text().replace('"target"', '"tarfet"'))
    with pytest.raises(CorruptData, match=r"list\.json is damaged: an entry does not match"):
        redirects.redirects_of(tree.layout)


def test_what_is_not_redirected_cannot_be_removed(tree: Tree) -> None:
    with pytest.raises(NotRegistered):
        redirects.remove(tree, "target")


# -- with the daemon ---------------------------------------------------------------------------


def listed(daemon: DaemonProcess) -> list[tuple[str, str, bool]]:
    entries = daemon.json("redirect", "list", "--name", "odd")
    return [(entry["path"], entry["method"], entry["active"]) for entry in entries]


@pytest.mark.parametrize("method", redirects.METHODS)
def test_kept_over_restarts_and_crashes(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], method: str
) -> None:
    mount = daemon.add_repo("odd", remote_repo().url)
    daemon.run("redirect", "add", "web/node_modules", "--name", "odd", "--method", method)
    (mount / "web/node_modules/x").write_text("kept")
    active = [("web/node_modules", method, True)]

    daemon.run("remount", "--name", "odd", "--restart")
    assert listed(daemon) == active

    daemon.stop()
    daemon.start()
    assert listed(daemon) == active

    worker = daemon.worker(mount)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: daemon.told("odd").get("pid") not in (None, worker), "the next worker")
    wait_until(lambda: daemon.told("odd")["state"] == "mounted", "the mount")
    assert listed(daemon) == active
    assert (mount / "web/node_modules/x").read_text() == "kept"
    assert git_status(mount) == ""

    daemon.run("redirect", "remove", "web/node_modules", "--name", "odd", "--keep")
    assert (mount / "web/node_modules/x").read_text() == "kept"
    daemon.run("remove-repo", "--name", "odd", "--force")
    assert not mounts_at(str(mount))


def git_status(mount: Path) -> str:
    return subprocess.run(
        ["git", "-C", mount, "status", "--porcelain"], check=True, capture_output=True, text=True
    ).stdout


def test_a_folder_in_use_keeps_its_redirection(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    """An unmount that is refused leaves everything as it was."""
    mount = daemon.add_repo("odd", remote_repo().url)
    daemon.run("redirect", "add", "target", "--name", "odd")
    with (mount / "opened").open("w"):
        refused = daemon.run("unmount", "--name", "odd", check=False)
        assert refused.returncode != 0
    assert listed(daemon) == [("target", "bind", True)]


def test_redirect_needs_a_mount(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    daemon.add_repo("odd", remote_repo().url)
    daemon.run("unmount", "--name", "odd")
    refused = daemon.run("redirect", "add", "target", "--name", "odd", check=False)
    assert refused.returncode == 1
    assert "hint: artifact-fs remount --name odd" in refused.stderr


@both
def test_what_is_taken_along_stays_as_it_was(tree: Tree, method: str) -> None:
    """Owners, modes, times, hard links, symlinks and a fifo, there and back."""
    folder = tree.mount_point / "target"
    folder.mkdir()
    (folder / "file").write_text("x")
    os.chown(folder / "file", 65534, 65533)
    (folder / "file").chmod(0o4750)
    os.utime(folder / "file", ns=(1, 2_000_000_000))
    os.link(folder / "file", folder / "same")
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "fifo", 0o600)
    os.chown(folder, 65534, 65534)

    def seen() -> list[object]:
        found = []
        for path in sorted(folder.iterdir()):
            it = path.lstat()
            found.append((path.name, it.st_mode, it.st_uid, it.st_gid, it.st_mtime_ns, it.st_nlink))
        return [folder.stat().st_uid, *found]

    before = seen()
    redirects.add(tree, "target", method=method, move=True)
    assert seen() == before
    redirects.remove(tree, "target", keep=True)
    assert seen() == before


def test_what_cannot_be_copied_is_left_where_it_is(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tree.mount_point / "target"
    folder.mkdir()
    (folder / "file").write_text("x")
    program = tmp_path / "cp"
    program.write_text("#!/bin/sh\necho 'cp: no space left' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MountError, match="no space left"):
        redirects.add(tree, "target", move=True)
    assert (folder / "file").read_text() == "x"
    monkeypatch.undo()
    redirects.add(tree, "target", move=True)
