"""Whole folders of the state root that are gone, or are no folders: named, never passed over."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")


@pytest.fixture
def written(daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]) -> Path:
    """A repository that programs have written in, unmounted; the folder with its files."""
    return write(daemon, remote_repo, "fuse")


def write(daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], writes: str) -> Path:
    mount = daemon.add_repo("odd", remote_repo().url, "--writes", writes)
    daemon.wait_for("odd", "history")
    (mount / "new").write_text("new\n")
    (mount / "README.md").write_text("changed\n")
    daemon.stop()
    return daemon.state / "repos/odd"


def start(daemon: DaemonProcess) -> str:
    """What became of the mount."""
    daemon.log.unlink(missing_ok=True)
    daemon.start()
    return str(wait_until(lambda: outcome(daemon), "an outcome"))


def outcome(daemon: DaemonProcess) -> str | None:
    told = daemon.told("odd")
    return "failed" if told["error"] else "mounted" if told["state"] == "mounted" else None


def said(daemon: DaemonProcess) -> dict[str, str]:
    return {
        "status": json.dumps(daemon.status("odd")),
        "doctor": daemon.run("doctor", "--offline", check=False).stdout,
        "log": daemon.log.read_text(),
    }


def check_named(daemon: DaemonProcess, *words: str) -> None:
    for place, text in said(daemon).items():
        for word in words:
            assert word in text, (place, text)


@pytest.mark.parametrize("lost", ["", "git"])
def test_a_folder_of_the_repository_is_gone(
    written: Path, daemon: DaemonProcess, lost: str
) -> None:
    """It is cloned anew, and people are told what they have lost."""
    credentials = (written / "credentials").read_text().strip()
    shutil.rmtree(written / lost)
    before = daemon.run("doctor", "--offline", check=False)
    assert before.returncode == 1 and f"{written}/git is missing" in before.stdout
    if not lost:  # with the credentials
        assert start(daemon) == "failed"
        check_named(daemon, f"{written}/git", " missing, and is ")
        (written / "credentials").write_text(credentials)
        daemon.stop()
    assert start(daemon) == "mounted"
    assert (daemon.mounts / "odd/LICENSE").read_text()
    check_named(daemon, f"{written}/git", "is cloned anew")
    if lost == "git":
        assert (daemon.mounts / "odd/new").read_text() == "new\n"
    else:
        check_named(daemon, f"{written}/overlay.db", "all that was written")


def test_the_overlay_is_gone_as_a_whole(written: Path, daemon: DaemonProcess) -> None:
    for path in written.iterdir():
        if path.name.startswith("overlay") or path.name in ("upper", "small"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert start(daemon) == "mounted"
    check_named(daemon, f"{written}/overlay.db", "all that was written")


def test_what_was_never_mounted_is_no_loss(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    served = remote_repo()
    daemon.run("add-repo", "--name", "odd", "--remote", served.url + ".absent", "--async")
    daemon.stop()
    assert "is missing" not in daemon.run("doctor", "--offline", check=False).stdout
    daemon.start()
    daemon.run("set-remote", "--name", "odd", "--remote", served.url)
    daemon.run("wait", "--name", "odd")
    assert not daemon.status("odd")["damage"]


@ROOT
@pytest.mark.parametrize("lost", ["native", "native/upper"])
def test_what_the_kernel_has_written_is_gone(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], lost: str
) -> None:
    """The tree as it was fetched would look as if nobody had written anything."""
    folder = write(daemon, remote_repo, "kernel")
    (folder / lost).rename(folder / "kept")
    assert start(daemon) == "failed"
    check_named(daemon, f"{folder / lost} is missing")
    daemon.stop()
    assert f"{folder / lost} is missing" in daemon.run("doctor", "--offline", check=False).stdout
    (folder / "kept").rename(folder / lost)
    assert start(daemon) == "mounted"
    assert (daemon.mounts / "odd/new").read_text() == "new\n"
    daemon.stop()
    shutil.rmtree(folder / lost)
    assert start(daemon) == "failed"
    hint = daemon.told("odd")["error"]["hint"]
    subprocess.run(["sh", "-c", hint.rpartition(": ")[2]], check=True)  # to go on without
    daemon.run("remount", "odd")
    assert (daemon.mounts / "odd/README.md").read_text() != "changed\n"


@ROOT
def test_the_folder_of_overlayfs_itself_is_made_again(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    folder = write(daemon, remote_repo, "kernel")
    shutil.rmtree(folder / "native/work")
    assert start(daemon) == "mounted"
    assert (daemon.mounts / "odd/new").read_text() == "new\n"


@pytest.mark.parametrize("place", ["upper", "small", "git/objects/pack", "../../cache/blobs"])
def test_something_else_lies_where_a_folder_was(
    written: Path, daemon: DaemonProcess, place: str
) -> None:
    folder = (written / place).resolve()
    folder.rename(f"{folder}.kept")
    folder.touch()
    assert start(daemon) == "failed"
    check_named(daemon, f"{folder} cannot be used: ")
    folder.unlink()
    Path(f"{folder}.kept").rename(folder)
    daemon.run("remount", "odd")
    assert (daemon.mounts / "odd/new").read_text() == "new\n"


@pytest.mark.parametrize("place", ["cache", "repos", "control.sock"])
def test_the_daemon_says_which_file_is_in_its_way(daemon: DaemonProcess, place: str) -> None:
    daemon.stop()
    path = daemon.state / place
    path.rename(f"{path}.old") if path.exists() else None
    path.mkdir() if place == "control.sock" else path.touch()
    with pytest.raises(RuntimeError, match=f"error: .*{path}") as refused:
        daemon.start()
    assert "Traceback" not in str(refused.value) and "hint: " in str(refused.value)


def test_a_gitdir_without_refs_is_named(written: Path, daemon: DaemonProcess) -> None:
    shutil.rmtree(written / "git/refs")
    assert start(daemon) == "mounted"
    wait_until(lambda: daemon.told("odd")["damage"], "it is found")
    check_named(daemon, f"{written}/git/refs", "is missing")


def test_a_lock_that_a_killed_git_has_left_is_named(written: Path, daemon: DaemonProcess) -> None:
    lock = written / "git/index.lock"
    lock.touch()
    assert str(lock) not in daemon.run("doctor", "--offline", check=False).stdout
    old = time.time() - 3600
    os.utime(lock, (old, old))
    (line,) = (
        line
        for line in daemon.run("doctor", "--offline", check=False).stdout.splitlines()
        if "gitdir.lock-left" in line
    )
    assert f"{lock} is 60 min old" in line


def test_a_damaged_commit_graph_is_removed(written: Path, daemon: DaemonProcess) -> None:
    gitdir = written / "git"
    git = ["git", f"--git-dir={gitdir}", "--work-tree=/", "-c", "core.fsmonitor=false"]
    history = subprocess.run([*git, "log", "--format=%H"], check=True, capture_output=True).stdout
    subprocess.run([*git, "commit-graph", "write", "--reachable"], check=True)
    graph = gitdir / "objects/info/commit-graph"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2 : -60] = bytes(len(content) - len(content) // 2 - 60)
    graph.chmod(0o644)
    graph.write_bytes(content)
    assert str(graph) in daemon.run("doctor", "--offline", check=False).stdout
    assert start(daemon) == "mounted"
    wait_until(lambda: daemon.told("odd")["damage"], "it is found")
    check_named(daemon, str(graph))
    assert daemon.told("odd")["damage"][0]["mended"]
    log = ["git", "-C", str(daemon.mounts / "odd"), "log", "--format=%H"]
    assert subprocess.run(log, check=True, capture_output=True).stdout == history


def test_indexes_that_are_cut_under_a_mount(written: Path, daemon: DaemonProcess) -> None:
    """Of packs of trees: git makes them anew at once."""
    assert start(daemon) == "mounted"
    top = daemon.mounts / "odd"
    for index in (written / "git/objects/pack").glob("*.idx"):
        index.chmod(0o644)
        os.truncate(index, 1000)
    wait_until(lambda: is_whole(top), "everything can be looked at")
    # What was read before is in memory: this reads all trees.
    daemon.run("prefetch", "--name", "odd", "README.md", check=False)
    wait_until(lambda: daemon.told("odd")["damage"], "it is found")
    check_named(daemon, ".idx", "is damaged")
    git = ["git", "-C", str(top), "log", "--oneline"]
    assert subprocess.run(git, check=True, capture_output=True).stderr == b""


def is_whole(top: Path) -> bool:
    """Right, or EIO."""
    failed: list[OSError] = []
    count = sum(len(files) for _, _, files in os.walk(top, onerror=failed.append))
    assert all(error.errno == errno.EIO for error in failed)
    return not failed and count > 300
