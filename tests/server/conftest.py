"""Fixtures: the server that most tests share, servers of one's own, git, a working tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.running import Git, Server, ServerFactory, git_environment


def _git(home: Path, cwd: Path, words: list[str], *, fails: bool) -> str:
    done = subprocess.run(
        words, cwd=cwd, env=git_environment(home), capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) is fails, (words, done.stdout, done.stderr)
    return done.stderr if fails else done.stdout


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git; its stdout. With ``fails=True`` it must fail, and its stderr is returned."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)

    def run(*arguments: str | Path, cwd: Path | None = None, fails: bool = False) -> str:
        return _git(home, cwd or tmp_path, ["git", *map(str, arguments)], fails=fails)

    return run


@pytest.fixture(scope="session")
def _work_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("model") / "work"
    (tree / "src").mkdir(parents=True)
    (tree / "README.md").write_text("# Demo\n")
    (tree / "src" / "app.py").write_text("print('one')\n")
    (tree / "run.sh").write_text("#!/bin/sh\necho hi\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("README.md")

    def git(*words: str) -> None:
        _git(tree.parent, tree, ["git", *words], fails=False)

    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "First")
    (tree / "src" / "app.py").write_text("print('two')\n")
    git("commit", "-q", "-a", "-m", "Second\n\nWith a body.")
    return tree


@pytest.fixture
def work(tmp_path: Path, _work_model: Path) -> Path:
    """A working tree with two commits on main."""
    shutil.copytree(_work_model, tmp_path / "work", symlinks=True)
    return tmp_path / "work"


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[ServerFactory]:
    """Start servers of one's own, with options; all are stopped at the end."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        root = tmp_path / f"server{len(started)}"
        root.mkdir(exist_ok=True)
        server = Server(root, list(options))
        started.append(server)
        return server.start()

    yield start
    for server in started:
        if server.process is not None:
            server.kill()


@pytest.fixture(scope="session")
def _shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), ["--allow-private-networks"])
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(_shared_server: Server, request: pytest.FixtureRequest) -> Server:
    """The server that most tests share; each test uses names of its own."""
    return _shared_server


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository name that no other test uses."""
    text = request.node.name.removeprefix("test_").lower()
    cleaned = "".join(c if c.isalnum() else "-" for c in text).strip("-")
    return f"{cleaned[:40]}-{os.urandom(3).hex()}"
