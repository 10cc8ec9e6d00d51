"""A remote that can be pushed to, and a daemon whose state root workspaces are opened in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import artifactfs
from artifactfs.workspaces.opening import OpenWorkspace
from tests.e2e.mount_table import mounts_below
from tests.e2e.processes import DaemonProcess


def git(*arguments: str | Path) -> str:
    done = subprocess.run(["git", *map(str, arguments)], check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository with a few files in one commit."""
    bare, clone = tmp_path / "hello.git", tmp_path / "clone"
    git("init", "-q", "--bare", "-b", "main", bare)
    git("-C", bare, "config", "uploadpack.allowFilter", "true")
    git("init", "-q", "-b", "main", clone)
    (clone / "src").mkdir()
    (clone / "src" / "main.c").write_text("int main(void) { return 0; }\n")
    (clone / "README.md").write_text("# Hello\n")
    (clone / ".gitignore").write_text("*.log\n")
    git("-C", clone, "add", "-A")
    git("-C", clone, "commit", "-q", "-m", "First")
    git("-C", clone, "push", "-q", bare, "main")
    return bare


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[DaemonProcess]:
    daemon = DaemonProcess()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.clean_up()
        shutil.rmtree(daemon.directory, ignore_errors=True)


@pytest.fixture
def daemon(shared_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """The daemon of the module; nothing is left in it after a test."""
    yield shared_daemon
    for repo in shared_daemon.json("list-repos"):
        shared_daemon.run("remove-repo", repo["name"], "--force")
    shared_daemon.run("gc")
    assert not mounts_below(shared_daemon.mounts)
    assert not list((shared_daemon.state / "workspaces").glob("*"))


Open = Callable[..., OpenWorkspace]
WRITES = os.environ.get("ARTIFACT_FS_ADD_REPO_WRITES", "auto")
"""As for the tests of the whole program: who takes what programs write."""


@pytest.fixture
def open_workspace(daemon: DaemonProcess, remote: Path) -> Open:
    """`artifactfs.workspace` of the remote, in the state root of the daemon."""

    def call(given: Any = str(remote), **options: Any) -> OpenWorkspace:
        options = {"hydrate": "none", "writes": WRITES, **options}
        return artifactfs.workspace(given, state_root=daemon.state, **options)

    return call
