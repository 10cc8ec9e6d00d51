"""What other branches and tags have, of which sizes are learnt in the background."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import trio

from artifactfs.daemon.background import other_tips
from artifactfs.daemon.background.other_tips import blobs_that_differ, newest_trees


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`main`; an older branch of another tree and one of the same; an annotated tag, the newest;
    tags of a tree and a blob."""
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    commit(work, {"a": "one\n", "sub/b": "two\n", "gone": "gone\n"}, at=1_000)
    git(work, "branch", "older")
    git(work, "rm", "-q", "gone")
    commit(work, {"a": "changed\n"}, at=2_000)
    git(work, "branch", "same")
    git(work, "checkout", "-q", "--detach")
    commit(work, {"sub/b": "tagged\n", "sub/c": "new\n"}, at=3_000)
    git(work, "tag", "-a", "-m", "A tag", "annotated", at=3_000)
    git(work, "tag", "of-a-tree", "main^{tree}")
    git(work, "tag", "of-a-blob", "main:a")
    return work


def git(work: Path, *arguments: str, at: int = 1_000) -> str:
    date = f"{1_700_000_000 + at} +0000"
    environment = {**os.environ, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    done = subprocess.run(
        ["git", *arguments], cwd=work, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(work: Path, files: dict[str, str], *, at: int) -> None:
    for name, text in files.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(text)
    git(work, "add", "-A")
    git(work, "commit", "-qm", "A commit", at=at)


def oid(work: Path, name: str) -> bytes:
    return bytes.fromhex(git(work, "rev-parse", name))


def test_the_newest_trees_come_first_and_once(repository: Path) -> None:
    lost = repository / ".git/refs/heads/lost"  # what it names is not here
    lost.write_text("1" * 40 + "\n")
    found = trio.run(newest_trees, repository / ".git")
    names = ("annotated^{tree}", "main^{tree}", "older^{tree}")
    assert found == [oid(repository, name) for name in names]


def test_blobs_of_the_other_tree_that_the_first_has_not(repository: Path) -> None:
    def differ(base: str, tree: str) -> set[bytes]:
        trees = oid(repository, f"{base}^{{tree}}"), oid(repository, f"{tree}^{{tree}}")
        return trio.run(blobs_that_differ, repository / ".git", *trees)

    new = {oid(repository, "annotated:sub/b"), oid(repository, "annotated:sub/c")}
    assert differ("main", "annotated") == new
    assert differ("main", "older") == {oid(repository, "older:a"), oid(repository, "older:gone")}
    assert differ("main", "same") == set()


def test_what_is_too_much_or_not_here_is_passed_over(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = oid(repository, "main^{tree}"), oid(repository, "annotated^{tree}")
    assert trio.run(blobs_that_differ, repository / ".git", trees[0], b"x" * 20) == set()
    monkeypatch.setattr(other_tips, "MAX_PRINTED", 100)
    assert trio.run(blobs_that_differ, repository / ".git", *trees) == set()
