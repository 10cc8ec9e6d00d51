"""Listing every version of a path."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from artifactfs.git.command import GitFailed
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.objects.history import blobs_of_history, blobs_of_recent_commits


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


def recent(repo: Path, **limits: int) -> set[str]:
    odb = ObjectDatabase(repo / ".git")
    head = bytes.fromhex(git(repo, "rev-parse", "HEAD"))
    oids = trio.run(partial(blobs_of_recent_commits, odb, head, **limits))
    assert len(oids) == len(set(oids))
    return {oid.hex() for oid in oids}


def raw_blobs(repo: Path, *options: str) -> set[str]:
    """What git itself reads for ``git log -p``."""
    text = git(repo, "log", "--raw", "--no-abbrev", "--no-renames", "--format=", *options)
    words = [word for line in text.splitlines() for word in line.split()[2:4]]
    return set(words) - {"0" * 40}


def test_the_blobs_of_recent_commits_are_those_that_git_compares(repo: Path) -> None:
    git(repo, "checkout", "-qb", "side", "HEAD~2")
    (repo / "docs" / "deep").mkdir()
    (repo / "docs" / "deep" / "side").write_text("side\n")
    (repo / "link").symlink_to("docs")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "side")
    git(repo, "checkout", "-q", "main")
    git(repo, "merge", "-q", "--no-ff", "-m", "merge", "side")
    git(repo, "rm", "-q", "-r", "docs")
    git(repo, "commit", "-qm", "remove")
    assert recent(repo) == raw_blobs(repo, "--diff-merges=first-parent")
    assert recent(repo, commits=1) == raw_blobs(repo, "-1")


def test_a_commit_that_changes_too_much_is_left_out(repo: Path) -> None:
    for number in range(50):
        (repo / f"many{number}").write_text(f"{number}\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "many")
    assert recent(repo, max_blobs=49) == raw_blobs(repo, "HEAD~1")


def test_recent_commits_of_a_shallow_clone_end_where_it_ends(repo: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=2", f"file://{repo}", str(shallow))
    assert recent(shallow) == raw_blobs(repo, "-1")
