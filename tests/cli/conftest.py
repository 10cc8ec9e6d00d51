"""A local remote that can be pushed to, so that these tests need no server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


class LocalRemote:
    """A bare repository and a clone of it to commit in."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "remote.git"
        self._clone = directory / "clone"
        self._git("init", "-q", "--bare", "-b", "main", str(self.path))
        self._git("-C", str(self.path), "config", "uploadpack.allowFilter", "true")
        self._git("-C", str(self.path), "config", "transfer.advertiseObjectInfo", "true")
        self._git("clone", "-q", str(self.path), str(self._clone))
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


@pytest.fixture
def local_remote(tmp_path: Path) -> LocalRemote:
    return LocalRemote(tmp_path)
