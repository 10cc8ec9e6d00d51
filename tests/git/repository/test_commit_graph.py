"""The commit-graph that is written beside whatever else works on the repository."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio

from artifactfs.git.command import run_git
from artifactfs.git.repository import commit_graph
from artifactfs.git.repository.commit_graph import write_changed_paths, write_commit_graph
from benchmarks.fast_import import FILE, FastImport
from tests.git.sample_repository import git

COMMITS = 3_000
Write = Callable[[Path], Coroutine[Any, Any, None]]
both = pytest.mark.parametrize("write", [write_commit_graph, write_changed_paths])


@pytest.fixture
def gitdir(tmp_path: Path) -> Path:
    path = tmp_path / "long.git"
    with FastImport(path) as stream:
        for number in range(COMMITS):
            blob = stream.blob(b"%d\n" % number)
            stream.commit(
                f"Change {number}", {b"d%d/f%d" % (number % 9, number % 70): (FILE, blob)}
            )
    git("repack", "-adq", cwd=path)
    return path


def graph_of(gitdir: Path) -> Path:
    return gitdir / "objects/info/commit-graph"


def left_over(gitdir: Path) -> list[Path]:
    return [*(gitdir / "artifactfs").rglob("*commit-graph*"), *gitdir.rglob("*.lock")]


@both
def test_git_s_lock_is_free_meanwhile(gitdir: Path, write: Write) -> None:
    """Else a `git gc` that somebody starts ends with "Another git process seems to be running"."""
    done = threading.Event()
    seen: list[Path] = []

    def look() -> None:
        lock = graph_of(gitdir).with_name("commit-graph.lock")
        while not done.is_set():
            if lock.exists():
                seen.append(lock)
            time.sleep(0)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        trio.run(write, gitdir)
    finally:
        done.set()
        looking.join()
    assert seen == []
    assert git("commit-graph", "verify", cwd=gitdir) == ""
    assert (b"BIDX" in graph_of(gitdir).read_bytes()[:256]) == (write is write_changed_paths)
    assert left_over(gitdir) == []


@both
def test_somebody_is_about_to_write_one(gitdir: Path, write: Write) -> None:
    lock = graph_of(gitdir).with_name("commit-graph.lock")
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    trio.run(write, gitdir)
    assert not graph_of(gitdir).exists()
    assert left_over(gitdir) == [lock]


@both
def test_somebody_has_written_one_meanwhile(
    gitdir: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: list[int] = []

    async def run(*arguments: str, **options: Any) -> bytes:
        printed = await run_git(*arguments, **options)
        await trio.run_process(["git", "-C", str(gitdir), "commit-graph", "write", "--reachable"])
        theirs.append(graph_of(gitdir).stat().st_ino)
        return printed

    monkeypatch.setattr(commit_graph, "run_git", run)
    trio.run(write, gitdir)
    assert [graph_of(gitdir).stat().st_ino] == theirs
    assert b"BIDX" not in graph_of(gitdir).read_bytes()[:256]
    assert git("commit-graph", "verify", cwd=gitdir) == ""
    assert left_over(gitdir) == []


@both
def test_one_of_several_files_stays(gitdir: Path, write: Write) -> None:
    git("commit-graph", "write", "--reachable", "--split", cwd=gitdir)
    trio.run(write, gitdir)
    assert not graph_of(gitdir).exists()
    assert git("commit-graph", "verify", cwd=gitdir) == ""


def test_what_a_killed_worker_left_goes(gitdir: Path) -> None:
    (gitdir / "artifactfs/commit-graph.1234/info").mkdir(parents=True)
    trio.run(write_commit_graph, gitdir)
    assert graph_of(gitdir).exists()
    assert left_over(gitdir) == []


def test_where_it_cannot_be_written(gitdir: Path) -> None:
    (gitdir / "artifactfs").write_text("a file")
    trio.run(write_changed_paths, gitdir)
    assert not graph_of(gitdir).exists()


def test_a_repository_without_commits(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "empty.git", cwd=tmp_path)
    trio.run(write_commit_graph, tmp_path / "empty.git")
    assert not graph_of(tmp_path / "empty.git").exists()
    assert left_over(tmp_path / "empty.git") == []
