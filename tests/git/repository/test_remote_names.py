"""The remote that was cloned, whatever the user has called it since."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from artifactfs.daemon.repositories.prepared import remote_of
from artifactfs.daemon.repositories.remotes import store_remote
from artifactfs.errors import InvalidInput
from artifactfs.git.remote.clone import fetch_refs
from artifactfs.git.repository.refspecs import tracked_remote
from tests.git.clones import Clone, make_clone
from tests.git.sample_repository import Sample, git


@pytest.fixture
def clone(tmp_path: Path, hosted: Sample) -> Clone:
    return make_clone(tmp_path, str(hosted.bare))


def fetch(clone: Clone) -> list[str]:
    """Fetch; returns the refs that moved."""

    async def body(remote: object) -> list[str]:
        result = await fetch_refs(clone.layout, clone.settings, remote)  # type: ignore[arg-type]
        return [change.name for change in result.changes]

    return clone.run(body)


def oid(clone: Clone, ref: str) -> str:
    return clone.git("rev-parse", ref)


def test_a_renamed_remote_is_still_the_one_that_is_fetched(
    clone: Clone, hosted: Sample, tmp_path: Path
) -> None:
    clone.run(clone.both)
    fork = tmp_path / "fork.git"
    git("clone", "--quiet", "--bare", str(hosted.bare), str(fork), cwd=tmp_path)
    clone.git("remote", "rename", "origin", "upstream")
    clone.git("remote", "add", "origin", str(fork))
    clone.git("fetch", "--quiet", "origin")
    before = oid(clone, "origin/main")
    new = hosted.commit("new.txt", "x")
    assert fetch(clone) == ["refs/remotes/upstream/main"]
    assert oid(clone, "upstream/main") == new.hex()
    assert oid(clone, "origin/main") == before
    moved = hosted.bare.rename(hosted.bare.with_name("moved.git"))
    trio.run(store_remote, clone.layout, clone.settings, str(moved), None)
    assert clone.git("remote", "get-url", "origin") == str(fork)
    assert clone.git("remote", "get-url", "upstream") == str(moved)


def test_the_default_name_of_remotes_is_that_of_git(
    clone: Clone, hosted: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[clone]\n\tdefaultRemoteName = home/base\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    clone.run(clone.both)
    plain = tmp_path / "plain"
    git("clone", "--quiet", str(hosted.bare), str(plain), cwd=tmp_path)
    both = ("for-each-ref", "--format=%(refname) %(objectname) %(symref)", "refs/remotes")
    assert clone.git(*both) == git(*both, cwd=plain)
    assert oid(clone, "main@{upstream}") == oid(clone, "home/base/main")
    hosted.commit("new.txt", "x")
    assert fetch(clone) == ["refs/remotes/home/base/main"]
    assert clone.git("fetch") == ""


def test_a_default_name_that_git_refuses_is_refused(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[clone]\n\tdefaultRemoteName = a..b\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    with pytest.raises(InvalidInput, match=r"clone\.defaultRemoteName"):
        clone.run(clone.tip)
    assert not clone.gitdir.exists()


def test_refspecs_are_those_of_the_configuration(
    clone: Clone, hosted: Sample, tmp_path: Path
) -> None:
    clone.run(clone.both)
    git("update-ref", "refs/pull/7/head", "main~1", cwd=hosted.bare)
    git("branch", "private/x", "main", cwd=hosted.bare)
    clone.git(
        "config", "--add", "remote.origin.fetch", "+refs/pull/*/head:refs/remotes/origin/pr/*"
    )
    clone.git("config", "--add", "remote.origin.fetch", "^refs/heads/private/*")
    assert fetch(clone) == ["refs/remotes/origin/pr/7"]
    plain = clone.git("fetch", "--prune", "--dry-run")
    assert plain == ""
    git("update-ref", "-d", "refs/pull/7/head", cwd=hosted.bare)
    assert fetch(clone) == ["refs/remotes/origin/pr/7"]
    assert "pr/7" not in clone.git("branch", "-r")


def test_no_tags_where_none_are_wanted(clone: Clone, hosted: Sample) -> None:
    clone.run(clone.both)
    clone.git("config", "remote.origin.tagOpt", "--no-tags")
    git("tag", "new-tag", "main", cwd=hosted.bare)
    assert fetch(clone) == []


def test_local_branches_stay_whatever_the_refspec_says(clone: Clone, hosted: Sample) -> None:
    clone.run(clone.both)
    clone.git("config", "remote.origin.fetch", "+refs/heads/*:refs/heads/*")
    before = oid(clone, "main")
    hosted.commit("new.txt", "x")
    fetch(clone)
    assert oid(clone, "main") == before


def test_the_remote_of_a_gitdir_of_others(hosted: Sample, tmp_path: Path) -> None:
    gitdir = tmp_path / "made.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(gitdir)], check=True)
    assert trio.run(remote_of, gitdir) is None
    git("remote", "add", "elsewhere", "https://example.org/a.git", cwd=gitdir)
    assert trio.run(remote_of, gitdir) == "https://example.org/a.git"
    git("remote", "add", "origin", "https://example.org/b.git", cwd=gitdir)
    assert trio.run(remote_of, gitdir) == "https://example.org/b.git"
    git("remote", "add", "dotted.name", "https://example.org/c.git", cwd=gitdir)
    assert trio.run(tracked_remote, gitdir, "https://example.org/c.git").name == "dotted.name"
