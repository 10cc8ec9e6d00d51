"""Git processes of ours see all that is in a gitdir, and nothing of a mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from artifactfs.git.apart import gitdir_environment
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.repository.alternates import offer, withdraw
from tests.git.sample_repository import git


def run(*arguments: str, gitdir: Path) -> str:
    async def main() -> bytes:
        return await run_git(*arguments, gitdir=gitdir)

    return trio.run(main).decode().strip()


@pytest.fixture
def in_mount(tmp_path: Path) -> tuple[Path, str]:
    """What stands for a mount's offered objects: an object directory, and an object in it."""
    other = tmp_path / "mount.git"
    git("init", "-q", "--bare", str(other), cwd=tmp_path)
    oid = git("hash-object", "-w", "/etc/hostname", cwd=other)
    return other / "objects", oid


@pytest.fixture
def make_gitdir(tmp_path: Path, in_mount: tuple[Path, str]) -> Callable[[str], Path]:
    """Makes a gitdir with a packed and a loose commit that offers what is in the mount."""

    def make(name: str) -> Path:
        gitdir = tmp_path / name / ".git"
        git("init", "-q", "-b", "main", str(gitdir.parent), cwd=tmp_path)
        git("commit", "-q", "--allow-empty", "-m", "packed", cwd=gitdir.parent)
        git("repack", "-adq", cwd=gitdir.parent)
        git("commit", "-q", "--allow-empty", "-m", "loose", cwd=gitdir.parent)
        offer(gitdir, os.fsencode(in_mount[0]) + b"\n")
        return gitdir

    return make


@pytest.mark.parametrize("name", ["plain", "a:b", '"quoted"'])
def test_sees_the_objects_and_not_the_mount(
    make_gitdir: Callable[[str], Path], in_mount: tuple[Path, str], tmp_path: Path, name: str
) -> None:
    gitdir = make_gitdir(name)
    git("config", "core.worktree", str(tmp_path / "gone"), cwd=gitdir)
    git("cat-file", "-e", in_mount[1], cwd=gitdir)  # a user's git sees it
    with pytest.raises(GitFailed):
        run("cat-file", "-e", in_mount[1], gitdir=gitdir)
    assert run("log", "--format=%s", gitdir=gitdir) == "loose\npacked"
    assert run("rev-parse", "--show-toplevel", gitdir=gitdir) == str(gitdir / "artifactfs")
    run("commit-graph", "write", "--reachable", gitdir=gitdir)
    run("branch", "other", gitdir=gitdir)
    assert (gitdir / "objects/info/commit-graph").is_file()
    assert git("rev-parse", "other", cwd=gitdir)
    assert git("fsck", "--no-dangling", cwd=gitdir) == ""
    withdraw(gitdir)
    assert run("log", "--format=%s", gitdir=gitdir) == "loose\npacked"


def test_alternates_stay_but_those_that_lead_to_a_mount(
    make_gitdir: Callable[[str], Path], in_mount: tuple[Path, str], tmp_path: Path
) -> None:
    """A gitdir that borrows from that of another mount, which borrows from a plain one."""
    plain = tmp_path / "plain.git"
    git("init", "-q", "--bare", str(plain), cwd=tmp_path)
    borrowed = git("hash-object", "-w", "/etc/passwd", cwd=plain)
    theirs = make_gitdir("theirs")
    relative = os.path.relpath(plain / "objects", theirs / "objects")
    with (theirs / "objects/info/alternates").open("a") as file:
        file.write(f"{relative}\n")
    commit = git("rev-parse", "HEAD", cwd=theirs)
    ours = tmp_path / "ours.git"
    git("init", "-q", "--bare", str(ours), cwd=tmp_path)
    (ours / "artifactfs").mkdir()
    (ours / "objects/info/alternates").write_text(f"{theirs / 'objects'}\n")
    git("cat-file", "-e", in_mount[1], cwd=ours)
    for oid in (borrowed, commit):
        run("cat-file", "-e", oid, gitdir=ours)
    with pytest.raises(GitFailed):
        run("cat-file", "-e", in_mount[1], gitdir=ours)


def test_fetches_nothing(tmp_path: Path, make_gitdir: Callable[[str], Path]) -> None:
    """What is promised and not here is missing: git does not go and get it."""
    source = make_gitdir("source")
    git("config", "uploadpack.allowFilter", "true", cwd=source)
    (source.parent / "f").write_text("content")
    git("add", "f", cwd=source.parent)
    git("commit", "-qm", "f", cwd=source.parent)
    clone = tmp_path / "clone.git"
    git("clone", "-q", "--bare", "--filter=blob:none", source.as_uri(), str(clone), cwd=tmp_path)
    blob = git("rev-parse", "HEAD:f", cwd=clone)
    with pytest.raises(GitFailed):
        run("cat-file", "-p", blob, gitdir=clone)
    environment = gitdir_environment(clone, may_fetch=True)
    command = ["git", f"--git-dir={clone}", "cat-file", "-p", blob]
    assert subprocess.run(command, env=environment, capture_output=True).stdout == b"content"
