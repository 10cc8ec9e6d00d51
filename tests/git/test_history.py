"""Listing every version of a path."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from artifactfs.git.command import GitFailed
from artifactfs.git.history import blobs_of_history


def git(repo: Path, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", *arguments],
        cwd=repo,
        input=stdin,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "docs").mkdir()
    for version in range(5):
        (tmp_path / "a b:c.txt").write_text(f"version {version}\n")
        (tmp_path / "docs" / "x").write_text(f"doc {version // 2}\n")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", f"commit {version}")
    return tmp_path


def listed(repo: Path, *paths: str) -> set[str]:
    oids = trio.run(partial(blobs_of_history, repo / ".git", paths))
    assert len(oids) == len(set(oids))
    return {oid.hex() for oid in oids}


def test_every_version_of_a_file_and_of_a_directory(repo: Path) -> None:
    file_versions = {git(repo, "rev-parse", f"HEAD~{n}:a b:c.txt") for n in range(5)}
    assert len(file_versions) == 5
    assert listed(repo, "a b:c.txt") == file_versions

    directory_versions = {git(repo, "rev-parse", f"HEAD~{n}:docs/x") for n in range(5)}
    assert listed(repo, "docs") == directory_versions
    assert listed(repo, "a b:c.txt", "docs") == file_versions | directory_versions


def test_a_version_that_only_a_merge_brought_is_listed(repo: Path) -> None:
    git(repo, "checkout", "-qb", "side", "HEAD~1")
    (repo / "docs" / "x").write_text("side\n")
    git(repo, "commit", "-qam", "side")
    side = git(repo, "rev-parse", "HEAD:docs/x")
    git(repo, "checkout", "-q", "main")
    git(repo, "merge", "-q", "-s", "ours", "--no-edit", "side")
    assert side in listed(repo, "docs/x")


def test_an_unknown_path_has_no_versions_and_an_unknown_revision_is_an_error(repo: Path) -> None:
    assert listed(repo, "nothing/here") == set()
    with pytest.raises(GitFailed):
        trio.run(partial(blobs_of_history, repo / ".git", ["docs"], rev="no-such-rev"))
