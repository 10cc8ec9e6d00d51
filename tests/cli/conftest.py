"""A local remote that can be pushed to, and one daemon for all tests of a module."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactfs.daemon.control.client import ControlClient
from artifactfs.paths import StateLayout
from tests.e2e.processes import DaemonProcess
from tests.git.sample_repository import no_detached_maintenance


class LocalRemote:
    """A bare repository and a clone of it to commit in."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "remote.git"
        self._clone = directory / "clone"

    def make(self) -> None:
        self._git("init", "-q", "--bare", "-b", "main", str(self.path))
        self._git("-C", str(self.path), "config", "uploadpack.allowFilter", "true")
        self._git("-C", str(self.path), "config", "transfer.advertiseObjectInfo", "true")
        self._git("clone", "-q", str(self.path), str(self._clone))
        for repository in (self.path, self._clone):
            no_detached_maintenance(repository)
        self._git("-C", str(self._clone), "remote", "set-url", "origin", "../remote.git")
        self._git("-C", str(self._clone), "switch", "-q", "-c", "main")
        (self._clone / "src").mkdir()
        (self._clone / "src" / "main.c").write_text("int main(void) { return 0; }\n")
        self.commit("README.md", "# Hello\n")

    @staticmethod
    def _git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], check=True, capture_output=True)
        return done.stdout.decode().strip()

    def commit(self, name: str, content: str) -> str:
        """Commit a file and push it; returns the commit's oid."""
        clone = str(self._clone)
        (self._clone / name).write_text(content)
        self._git("-C", clone, "add", "-A")
        self._git("-C", clone, "commit", "-q", "-m", f"Change {name}")
        self._git("-C", clone, "push", "-q", "origin", "main")
        return self._git("-C", clone, "rev-parse", "HEAD")


@pytest.fixture(scope="session")
def remote_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template")
    LocalRemote(directory).make()
    return directory


@pytest.fixture
def local_remote(tmp_path: Path, remote_template: Path) -> LocalRemote:
    shutil.copytree(remote_template, tmp_path, dirs_exist_ok=True)
    return LocalRemote(tmp_path)


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[DaemonProcess]:
    """A daemon that stays for all tests of a module."""
    daemon = DaemonProcess()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.clean_up()
        shutil.rmtree(daemon.directory, ignore_errors=True)


@pytest.fixture
def daemon(shared_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """The daemon of the module; without repositories and contents for each test."""
    yield shared_daemon
    with ControlClient(StateLayout(shared_daemon.state)) as client:
        for repo in client.request("list"):
            client.request("remove", name=repo["name"], force=True)
        client.request("evict", max_bytes=0)
