"""Scripts, entry points and instructions that were written for other programs of this kind.

What they expect of the command line: repositories that are prepared in the background, gitdirs that
other tools made, adding again at each start, and lines that a program takes apart.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import PROGRAMS, DaemonProcess, wait_until

BLOCKED_S = 0.7
"""Long enough to see that somebody waits; nothing fails where it is too short."""


def git(where: Path, *arguments: str) -> str:
    command = ["git", "-C", str(where), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository with two commits on main."""
    bare, work = tmp_path / "remote.git", tmp_path / "work"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(bare))
    git(bare, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", str(bare), str(work))
    git(work, "switch", "-q", "-c", "main")
    for name in ("README.md", "package.json"):
        (work / name).write_text(f"{name}\n")
        git(work, "add", "-A")
        git(work, "commit", "-q", "-m", f"Add {name}")
    git(work, "push", "-q", "origin", "main")
    return bare


@pytest.fixture
def held(idle_daemon: DaemonProcess, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A daemon whose git waits before it fetches or unpacks; call it to let git go on."""
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    released = tmp_path / "released"
    real = subprocess.run(["which", "git"], capture_output=True, text=True).stdout.strip()
    wrapper.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case $word in fetch|index-pack)\n'
        f"    while [ ! -e {released} ]; do sleep 0.05; done;; esac; done\n"
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    idle_daemon.extra_environment["PATH"] = path
    idle_daemon.start()
    idle_daemon.extra_environment["PATH"] = os.environ["PATH"]
    yield released.touch
    released.touch()


KERNEL = pytest.param(
    "kernel", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")
)


@pytest.fixture(params=["fuse", KERNEL])
def writes(request: pytest.FixtureRequest) -> str:
    """Who takes what programs write."""
    return str(request.param)


def reader(folder: Path) -> subprocess.Popen[str]:
    """A program that lists `folder`, and says what came of it."""
    script = (
        "import os, sys\n"
        "try: print(*sorted(os.listdir(sys.argv[1])))\n"
        "except OSError as e: print(e.errno)\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def still_waits(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(BLOCKED_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def fields(daemon: DaemonProcess, name: str) -> dict[str, str]:
    """The pairs of `status`, as a script reads them."""
    (line,) = daemon.run("status", "--name", name).stdout.splitlines()
    return dict(pair.split("=", 1) for pair in line.split(" "))


def test_who_looks_into_an_asynchronous_mount_waits(
    idle_daemon: DaemonProcess, held: Callable[[], None], remote: Path, writes: str
) -> None:
    daemon, mount = idle_daemon, idle_daemon.mounts / "later"
    options = ("--remote", f"file://{remote}", "--async", "--writes", writes)
    added = daemon.run("add-repo", "--name", "later", *options)
    assert added.stdout == "queued later\n"
    subprocess.run(["mountpoint", "-q", mount], check=True)
    waiting = reader(mount)
    writing = subprocess.Popen(["touch", mount / "mine"])
    assert still_waits(waiting)
    assert writing.poll() is None
    assert fields(daemon, "later")["state"] == "preparing"
    held()
    listed = waiting.communicate(timeout=60)[0].split()
    assert {".git", "README.md", "package.json"} <= set(listed), "it saw a tree, with mine or not"
    assert writing.wait(60) == 0
    assert git(mount, "status", "--porcelain") == "?? mine"
    assert fields(daemon, "later")["state"] == "mounted"
    assert (daemon.status("later")["writes"]["kind"]) == writes
    daemon.run("unmount", "--name", "later")
    assert os.listdir(mount) == [], "nothing was written into the folder underneath"


def test_who_waits_can_be_interrupted(
    idle_daemon: DaemonProcess, held: Callable[[], None], remote: Path, writes: str
) -> None:
    options = ("--remote", f"file://{remote}", "--async", "--writes", writes)
    idle_daemon.run("add-repo", "--name", "later", *options)
    waiting = reader(idle_daemon.mounts / "later")
    assert still_waits(waiting)
    waiting.kill()
    waiting.wait(60)
    idle_daemon.run("remove-repo", "--name", "later", "--force")
    assert not (idle_daemon.mounts / "later").exists()


def test_a_failure_is_an_error_until_it_is_prepared_again(
    daemon: DaemonProcess, remote: Path, writes: str
) -> None:
    away, mount = remote.with_name("away.git"), daemon.mounts / "later"
    remote.rename(away)
    options = ("--remote", f"file://{remote}", "--async", "--writes", writes)
    daemon.run("add-repo", "--name", "later", *options)
    wait_until(lambda: fields(daemon, "later")["state"] == "failed", "the failure")
    assert reader(mount).communicate(timeout=90)[0] == f"{errno.EIO}\n"
    with pytest.raises(OSError, match="Input/output error"):
        (mount / "mine").write_text("it must not be in the way of the mount")
    assert "does_not_exist" in fields(daemon, "later")["prepare_error"]
    away.rename(remote)
    daemon.run("prepare", "--name", "later")
    assert reader(mount).communicate(timeout=60)[0] == ".git README.md package.json\n"
    wait_until(lambda: fields(daemon, "later")["state"] == "mounted", "the mount")
    assert fields(daemon, "later")["prepare_error"] == "none"


def test_without_a_daemon_it_is_only_queued(
    idle_daemon: DaemonProcess, remote: Path, writes: str
) -> None:
    daemon = idle_daemon
    absent = f"file://{remote}.later"
    options = (
        "--ref",
        "refs/heads/main",
        "--depth",
        "1",
        "--refresh",
        "never",
        "--async",
        "--writes",
        writes,
    )
    added = daemon.run("add-repo", "--name", "later", "--remote", absent, *options)
    assert added.stdout == "queued later\n"
    assert daemon.run("list-repos").stdout.startswith("later\tmain\t")
    assert daemon.run("prepare", "--name", "later").stdout == "preparing later\n"
    remote.rename(f"{remote}.later")
    daemon.start()
    assert reader(daemon.mounts / "later").communicate(timeout=60)[0].startswith(".git README")
    assert fields(daemon, "later")["remote_refresh"] == "disabled"


def prepared_gitdir(tmp_path: Path, url: str, worktree: Path) -> Path:
    """As `git init` makes one, without a commit."""
    gitdir = tmp_path / "prepared.git"
    arguments = ("--separate-git-dir", str(gitdir), "--initial-branch", "main", str(worktree))
    git(tmp_path, "init", "-q", *arguments)
    git(worktree, "remote", "add", "origin", url)
    return gitdir


def test_a_prepared_gitdir_is_filled_while_readers_wait(
    idle_daemon: DaemonProcess, held: Callable[[], None], remote: Path, tmp_path: Path
) -> None:
    daemon, mount = idle_daemon, idle_daemon.mounts / "ready"
    gitdir = prepared_gitdir(tmp_path, f"file://{remote}", mount)
    daemon.run(
        *("add-repo", "--name", "ready", "--ref", "refs/heads/main", "--async"),
        *("--prepared-gitdir", "--git-dir", gitdir, "--fetch-ref", "main"),
    )
    waiting = reader(mount)
    assert still_waits(waiting)
    held()
    assert waiting.communicate(timeout=60)[0] == ".git README.md package.json\n"
    assert git(mount, "status", "--porcelain", "--branch") == "## main...origin/main"
    assert git(gitdir, "rev-parse", "main") == git(remote, "rev-parse", "main")


def test_a_prepared_gitdir_that_cannot_be_fetched_is_retried(
    daemon: DaemonProcess, remote: Path, tmp_path: Path
) -> None:
    worktree, mount = tmp_path / "worktree", daemon.mounts / "ready"
    gitdir = prepared_gitdir(tmp_path, f"file://{tmp_path}/missing.git", worktree)
    daemon.run(
        *("add-repo", "--name", "ready", "--branch", "main", "--async"),
        *("--prepared-gitdir", "--git-dir", gitdir),
    )
    wait_until(lambda: fields(daemon, "ready")["state"] == "failed", "the failure")
    assert "origin" in fields(daemon, "ready")["prepare_error"]
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(mount)
    git(worktree, "remote", "set-url", "origin", f"file://{remote}")
    daemon.run("prepare", "--name", "ready")
    wait_until(lambda: fields(daemon, "ready")["state"] == "mounted", "the mount")
    assert sorted(os.listdir(mount)) == [".git", "README.md", "package.json"]
    assert git(mount, "status", "--porcelain") == ""
    assert daemon.status("ready")["remote"] == f"file://{remote}"


def test_commits_of_a_prepared_gitdir_are_not_lost(
    daemon: DaemonProcess, remote: Path, tmp_path: Path
) -> None:
    gitdir = tmp_path / "mine.git"
    git(tmp_path, "clone", "-q", "--bare", str(remote), str(gitdir))
    mine = git(gitdir, "commit-tree", "-m", "Mine", "-p", "main", "main^{tree}")
    git(gitdir, "update-ref", "refs/heads/main", mine)
    options = ("--git-dir", gitdir, "--branch", "main")
    refused = daemon.run("add-repo", "--name", "ready", *options, check=False)
    assert refused.returncode == 2
    assert "has commits that its remote does not have" in refused.stderr
    assert git(gitdir, "rev-parse", "main") == mine


def test_adding_again_at_each_start(idle_daemon: DaemonProcess, remote: Path) -> None:
    daemon, mount = idle_daemon, idle_daemon.mounts / "repo"
    options = ("--name", "repo", "--remote", f"file://{remote}", "--branch", "main")
    daemon.run("add-repo", *options)
    daemon.run("add-repo", *options, "--refresh", "1h0m0s")
    daemon.start()
    (mount / "mine").write_text("mine\n")
    again = daemon.run("add-repo", *options, "--refresh", "90s")
    assert again.stdout.startswith(f"repo: mounted at {mount}, as before")
    assert daemon.status("repo")["refresh_s"] == 90
    assert (mount / "mine").read_text() == "mine\n"
    daemon.run("unmount", "repo")
    daemon.run("add-repo", *options)
    assert (mount / "mine").read_text() == "mine\n"
    other = daemon.run("add-repo", "--name", "repo", "--remote", "/srv/other.git", check=False)
    assert other.returncode == 1 and "is registered already" in other.stderr
    ref = daemon.run("add-repo", *options[:4], "--branch", "next", check=False)
    assert ref.returncode == 1 and "is registered with another --ref or --branch" in ref.stderr


def test_adding_again_moves_the_mount_point(
    daemon: DaemonProcess, remote: Path, tmp_path: Path
) -> None:
    options = ("--name", "repo", "--remote", f"file://{remote}")
    daemon.run("add-repo", *options)
    (daemon.mounts / "repo" / "mine").write_text("mine\n")
    daemon.run("add-repo", *options, "--mount-root", daemon.directory / "elsewhere")
    assert (daemon.directory / "elsewhere" / "repo" / "mine").read_text() == "mine\n"
    assert git(daemon.directory / "elsewhere" / "repo", "status", "--porcelain") == "?? mine"
    daemon.run("add-repo", *options)
    assert (daemon.directory / "elsewhere" / "repo" / "mine").exists(), "no other place is named"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prepared-gitdir",), "--git-dir is required with --prepared-gitdir"),
        ((), "--remote is required"),
        (("--remote", "/r", "--require-commit", "0" * 40), "requires an explicit --ref"),
        (("--remote", "/r", "--ref", "x", "--require-commit", "no"), "--require-commit must be a"),
        (("--remote", "/r", "--ref", "x", "--branch", "x"), "cannot be used together"),
        (("--remote", "/r", "--depth", "-1"), "--depth"),
        (("--remote", "/r", "--fetch-ref", "main"), "--fetch-ref needs --git-dir"),
    ],
)
def test_options_that_do_not_go_together(
    idle_daemon: DaemonProcess, options: tuple[str, ...], said: str
) -> None:
    refused = idle_daemon.run("add-repo", "--name", "repo", "--async", *options, check=False)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not idle_daemon.state.exists(), "nothing was fetched"


def test_options_of_others(idle_daemon: DaemonProcess, remote: Path) -> None:
    daemon = idle_daemon
    daemon.start("--hydration-concurrency", "2")
    daemon.run("add-repo", "--name", "repo", "--remote", f"file://{remote}", "--depth", "0")
    assert daemon.json("set-refresh", "--name", "repo", "--interval", "30s")["refresh_s"] == 30
    daemon.run("evict-cache", "--name", "repo")
    assert "packs of repo" in daemon.run("gc", "--name", "repo").stdout
    assert daemon.run("doctor", "--name", "repo", "--offline", check=False).returncode in (0, 1)
    for command in ("evict-cache", "gc", "doctor"):
        refused = daemon.run(command, "--name", "other", check=False)
        assert "no repository named 'other'" in refused.stderr


def test_status_in_pairs(daemon: DaemonProcess, remote: Path) -> None:
    point = daemon.directory / "with a blank"
    head = git(remote, "rev-parse", "main")
    daemon.run(
        *("add-repo", "--name", "repo", "--remote", f"file://{remote}", "--branch", "main"),
        *("--require-commit", head, "--mount-root", point, "--refresh", "never"),
    )
    daemon.wait_for("repo", "index")
    found = fields(daemon, "repo")
    expected = {
        "repo": "repo",
        "state": "mounted",
        "head": head,
        "ref": "main",
        "source_ref": "refs/heads/main",
        "required_commit": head,
        "acquisition": "verified",
        "base_commit": head,
        "remote_refresh": "disabled",
        "ahead": "0",
        "behind": "0",
        "diverged": "false",
        "last_fetch": "never",
        "result": "never",
        "prepare_error": "none",
    }
    assert {key: found[key] for key in expected} == expected
    assert list(found)[: len(expected)] == list(expected), "the order is kept"
    assert found["overlay_dirty"] == "false"
    assert found["mount_point"] == str(point / "repo").replace(" ", "%20")
    assert int(found["hydrated_blobs"]) >= 0 and int(found["hydrated_bytes"]) >= 0
    (point / "repo" / "mine").write_text("mine\n")
    assert fields(daemon, "repo")["overlay_dirty"] == "true"
    name, ref, mount_point, url = daemon.run("list-repos").stdout.rstrip("\n").split("\t")
    assert (name, ref, url) == ("repo", "main", f"file://{remote}")
    assert mount_point == found["mount_point"]
    daemon.run("unmount", "repo")
    assert fields(daemon, "repo")["state"] == "unmounted"


def test_a_terminal_gets_a_table(daemon: DaemonProcess, remote: Path) -> None:
    daemon.add_repo("repo", f"file://{remote}")
    command = f"{PROGRAMS}/artifact-fs list-repos; {PROGRAMS}/artifact-fs status"
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        env=daemon.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    ).stdout
    assert shown.startswith("NAME  STATE")
    assert "repo: mounted at" in shown
    assert daemon.run("list-repos", "--no-porcelain").stdout.startswith("NAME  STATE")


@pytest.mark.parametrize("writes", ["auto", "fuse"])
def test_what_was_committed_is_no_local_change(
    daemon: DaemonProcess, remote: Path, writes: str
) -> None:
    mount = daemon.add_repo("repo", f"file://{remote}", "--writes", writes)
    (mount / "README.md").write_text("committed\n")
    (mount / "large").write_text("large\n" * 50_000)
    (mount / "new").write_text("new\n")
    (mount / "untracked").write_text("stays\n")
    git(mount, "add", "README.md", "large", "new")
    assert fields(daemon, "repo")["overlay_files"] == "4"
    git(mount, "commit", "-q", "-m", "Mine")

    def local() -> tuple[str, str]:
        found = fields(daemon, "repo")
        return found["overlay_files"], found["overlay_bytes"]

    wait_until(lambda: local() == ("1", "6"), "only what was not committed")
    daemon.stop()
    daemon.start()
    wait_until(lambda: local() == ("1", "6"), "the same after a restart")
    (mount / "new").write_text("newer\n")
    assert local() == ("2", "12")
    git(mount, "push", "-q", "origin", "main")
    git(mount, "reset", "-q", "--soft", "HEAD~")
    wait_until(lambda: local()[0] == "4", "nothing of it is HEAD's any more")
    assert (mount / "README.md").read_text() == "committed\n"
