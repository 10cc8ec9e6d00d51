"""Servers that are not ours: without partial clone, without object-info, without protocol 2."""

from __future__ import annotations

import http.server
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks.fast_import import run_git
from tests.e2e.comparison import assert_same_tree
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import DaemonProcess
from tests.git.http_backend import Backend, http_backend


@pytest.fixture
def hosted(odd_repository: OddRepository, tmp_path: Path) -> Path:
    """A copy of the odd repository with git's default configuration."""
    copy = tmp_path / "hosted" / "odd.git"
    run_git("clone", "--quiet", "--mirror", odd_repository.path, copy)
    (copy / "git-daemon-export-ok").touch()
    return copy


@pytest.fixture
def clone(hosted: Path, tmp_path: Path) -> Path:
    run_git("clone", "--quiet", hosted, tmp_path / "clone")
    return tmp_path / "clone"


@pytest.fixture
def backend(hosted: Path) -> Iterator[Backend]:
    with http_backend(hosted.parent) as running:
        yield running


def assert_usable(daemon: DaemonProcess, mount: Path, clone: Path, commits: int) -> None:
    assert_same_tree(mount, clone)
    log = run_git("-C", mount, "log", "--oneline")
    assert len(log.splitlines()) == commits
    assert run_git("-C", mount, "status", "--porcelain") == ""
    (mount / "new").write_text("new\n")
    run_git("-C", mount, "add", "new")
    run_git("-C", mount, "commit", "--quiet", "-m", "New")
    assert run_git("-C", mount, "status", "--porcelain") == ""


def limits(daemon: DaemonProcess, name: str) -> str:
    """What `status` says the remote cannot do."""
    return daemon.run("status", "--name", name, "--no-porcelain").stdout


def test_http_backend_with_default_settings(
    daemon: DaemonProcess, backend: Backend, clone: Path, odd_repository: OddRepository
) -> None:
    mount = daemon.add_repo("plain", f"{backend.url}/odd.git")
    assert_usable(daemon, mount, clone, odd_repository.commits)
    assert "limit" in limits(daemon, "plain")


def test_http_backend_with_filters_but_no_object_info(
    daemon: DaemonProcess,
    backend: Backend,
    hosted: Path,
    clone: Path,
    odd_repository: OddRepository,
) -> None:
    run_git("-C", hosted, "config", "uploadpack.allowFilter", "true")
    mount = daemon.add_repo("filter", f"{backend.url}/odd.git")
    assert_usable(daemon, mount, clone, odd_repository.commits)


def test_http_backend_without_protocol_2(
    daemon: DaemonProcess, backend: Backend, clone: Path, odd_repository: OddRepository
) -> None:
    backend.version_2 = False
    mount = daemon.add_repo("old", f"{backend.url}/odd.git")
    assert_usable(daemon, mount, clone, odd_repository.commits)
    assert "limit" in limits(daemon, "old")


def test_dumb_http(
    daemon: DaemonProcess, hosted: Path, clone: Path, odd_repository: OddRepository
) -> None:
    run_git("-C", hosted, "update-server-info")
    handler = partial(_QuietFiles, directory=str(hosted.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            mount = daemon.add_repo("dumb", f"http://127.0.0.1:{server.server_port}/odd.git")
            assert_usable(daemon, mount, clone, odd_repository.commits)
            assert "limit" in limits(daemon, "dumb")
        finally:
            server.shutdown()


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.mark.parametrize("scheme", ["path", "file"])
def test_local_repository(
    daemon: DaemonProcess, hosted: Path, clone: Path, odd_repository: OddRepository, scheme: str
) -> None:
    remote = str(hosted) if scheme == "path" else hosted.as_uri()
    mount = daemon.add_repo("local", remote)
    assert_usable(daemon, mount, clone, odd_repository.commits)


def test_ssh(
    idle_daemon: DaemonProcess,
    hosted: Path,
    clone: Path,
    odd_repository: OddRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ssh program is one that runs the command here: what matters is how it is called."""
    program = tmp_path / "ssh"
    log = tmp_path / "ssh.log"
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$*" >> {shlex.quote(str(log))}\n'
        "while [ $# -gt 0 ]; do case $1 in -o|-p) shift 2;; -*) shift;; *) break;; esac; done\n"
        'host=$1; shift; [ "$host" = git@example.invalid ] || exit 255\n'
        'exec sh -c "$*"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(program))
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    idle_daemon.start()
    mount = idle_daemon.add_repo("ssh", f"ssh://git@example.invalid{hosted}")
    assert_usable(idle_daemon, mount, clone, odd_repository.commits)
    assert "example.invalid" in log.read_text()


@pytest.mark.long
def test_git_alone_can_use_what_we_made(
    daemon: DaemonProcess, hosted: Path, clone: Path, tmp_path: Path
) -> None:
    """The gitdir is a normal partial clone: without us, git goes on with it."""
    run_git("-C", hosted, "config", "uploadpack.allowFilter", "true")
    run_git("-C", hosted, "config", "uploadpack.allowAnySHA1InWant", "true")
    mount = daemon.add_repo("alone", hosted.as_uri())
    daemon.wait_for("alone", "history")
    (mount / "README.md").read_bytes()
    daemon.stop()
    gitdir = daemon.state / "repos/alone/git"
    out = tmp_path / "out"
    out.mkdir()
    environment = os.environ | {"GIT_DIR": str(gitdir), "GIT_WORK_TREE": str(out)}
    subprocess.run(["git", "checkout", "-f", "HEAD", "--", "."], env=environment, check=True)
    shutil.rmtree(out / "vendor", ignore_errors=True)
    shutil.rmtree(clone / "vendor")
    assert_same_tree(out, clone)
