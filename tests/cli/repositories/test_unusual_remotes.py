"""Remotes that git clones although there is little, or nothing, to check out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import LocalRemote
from tests.e2e.processes import DaemonProcess, ServedRepository
from tests.git.http_backend import http_backend


def git(directory: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], check=check, capture_output=True, text=True
    )
    return done.stdout.strip()


def bare(template: Path, *commands: tuple[str, ...]) -> None:
    """Make `template` what the git `commands` make of it."""
    for command in commands:
        git(template, *command)


CHANGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "empty": (("update-ref", "-d", "refs/heads/main"),),
    "empty with another name": (
        ("update-ref", "-d", "refs/heads/main"),
        ("symbolic-ref", "HEAD", "refs/heads/a/ünï#1"),
    ),
    "tags only": (("tag", "v1", "main"), ("update-ref", "-d", "refs/heads/main")),
    "dangling HEAD": (("symbolic-ref", "HEAD", "refs/heads/nowhere"),),
    "detached HEAD": (("branch", "other", "main"), ("update-ref", "--no-deref", "HEAD", "main")),
    "detached HEAD of master": (
        ("branch", "master", "main"),
        ("branch", "-m", "main", "a-first"),
        ("update-ref", "--no-deref", "HEAD", "refs/heads/master"),
    ),
    "detached HEAD at no branch": (("update-ref", "--no-deref", "HEAD", "main~1"),),
    "HEAD at a hidden branch": (
        ("branch", "other", "main"),
        ("config", "transfer.hideRefs", "refs/heads/main"),
    ),
    "HEAD is no branch": (
        ("update-ref", "refs/odd/one", "main"),
        ("symbolic-ref", "HEAD", "refs/odd/one"),
    ),
}


def seen(directory: Path) -> dict[str, str]:
    """What a user sees of a working tree."""
    return {
        "files": " ".join(sorted(os.listdir(directory))),
        "status": git(directory, "status", "-sb"),
        "head": git(directory, "symbolic-ref", "-q", "HEAD", check=False),
        "commit": git(directory, "rev-parse", "-q", "--verify", "HEAD", check=False),
        "refs": git(directory, "for-each-ref", "--format=%(refname) %(objectname) %(symref)"),
        "upstream": git(directory, "config", "--get-regexp", r"^branch\.", check=False),
    }


@pytest.mark.parametrize("scheme", ["path", "http", "http of old"])
@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_there_is_what_git_clone_makes(
    daemon: DaemonProcess, local_remote: LocalRemote, tmp_path: Path, kind: str, scheme: str
) -> None:
    if (kind, scheme) == ("HEAD at a hidden branch", "http of old"):
        pytest.skip("git cannot clone that: 'not our ref', without a state")
    local_remote.commit("second.txt", "2")
    bare(local_remote.path, *CHANGES[kind])
    with http_backend(local_remote.path.parent) as backend:
        backend.version_2 = scheme == "http"
        url = str(local_remote.path) if scheme == "path" else f"{backend.url}/remote.git"
        plain = tmp_path / "plain"
        subprocess.run(["git", "clone", "-q", url, str(plain)], check=True, capture_output=True)
        mount = daemon.add_repo("r", url, "--refresh", "never")
        assert seen(mount) == seen(plain)


def test_the_first_commit_of_an_empty_repository(daemon: DaemonProcess, tmp_path: Path) -> None:
    remote = tmp_path / "new.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(remote)], check=True)
    mount = daemon.add_repo("r", str(remote), "--refresh", "never")
    assert "main (no commits yet)" in daemon.run("status", "--name", "r", "--no-porcelain").stdout
    assert daemon.status("r")["commit"] is None
    daemon.run("fetch", "--name", "r")
    (mount / "src").mkdir()
    (mount / "src" / "a.c").write_text("int a;\n")
    (mount / "draft.txt").write_text("later\n")
    assert git(mount, "status", "--short") == "?? draft.txt\n?? src/"
    git(mount, "add", "src")
    git(mount, "commit", "-qm", "First")
    refused = daemon.run("remove-repo", "--name", "r", check=False)
    assert refused.returncode != 0
    daemon.run("remount", "--name", "r", "--restart")
    assert git(mount, "status", "-sb") == "## main...origin/main [gone]\n?? draft.txt"
    git(mount, "push", "-q", "origin", "main")
    assert git(remote, "rev-parse", "main") == git(mount, "rev-parse", "HEAD")
    assert (mount / "src" / "a.c").read_text() == "int a;\n"
    git(mount, "clean", "-fdq")
    assert git(mount, "status", "-sb") == "## main...origin/main"
    daemon.run("remove-repo", "--name", "r")


@pytest.mark.parametrize("kind", ["HEAD and main", "main", "two branches", "without its suffix"])
def test_a_bundle_is_a_remote(
    daemon: DaemonProcess, local_remote: LocalRemote, tmp_path: Path, kind: str
) -> None:
    bundle = tmp_path / "demo.bundle"
    other = git(local_remote.path, "commit-tree", "main^{tree}", "-m", "x")
    git(local_remote.path, "branch", "other", other)
    refs = {"main": ("main",), "two branches": ("HEAD", "--all")}.get(kind, ("HEAD", "main"))
    git(local_remote.path, "bundle", "create", "-q", str(bundle), *refs)
    url = str(bundle.with_suffix("") if kind == "without its suffix" else bundle)
    plain = tmp_path / "plain"
    subprocess.run(["git", "clone", "-q", url, str(plain)], check=True, capture_output=True)
    mount = daemon.add_repo("r", url, "--refresh", "never")
    assert seen(mount) == seen(plain)
    if kind != "main":  # without a HEAD, git looks for a branch of its own default name
        assert (mount / "README.md").read_text() == "# Hello\n"
    assert "is a bundle" in daemon.run("status", "--name", "r", "--no-porcelain").stdout
    new = local_remote.commit("new.txt", "x")
    git(local_remote.path, "bundle", "create", "-q", str(bundle), *refs)
    daemon.run("fetch", "--name", "r")
    assert git(mount, "rev-parse", "origin/main") == new
    git(mount, "merge", "-q", "--ff-only", "origin/main", check=kind != "main")
    git(mount, "switch", "-qC", "main", "origin/main")
    assert (mount / "new.txt").read_text() == "x"


def test_a_file_that_is_no_bundle(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "file.bundle").write_text("# v9 git bundle\n")
    command = ("add-repo", "--name", "r", "--remote", str(tmp_path / "file.bundle"))
    refused = daemon.run(*command, check=False)
    assert refused.returncode != 0
    assert "file.bundle" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("lacks", ["SHA-1 names", "older commits"])
def test_a_bundle_that_nothing_can_be_made_of(
    daemon: DaemonProcess, local_remote: LocalRemote, tmp_path: Path, lacks: str
) -> None:
    bundle = tmp_path / "demo.bundle"
    if lacks == "SHA-1 names":
        source = tmp_path / "source"
        made = ("init", "-q", "-b", "main", "--object-format=sha256", str(source))
        subprocess.run(["git", *made], check=True, capture_output=True)
        git(source, "commit", "-q", "--allow-empty", "-m", "x")
        git(source, "bundle", "create", "-q", str(bundle), "main")
    else:
        local_remote.commit("new.txt", "x")
        git(local_remote.path, "bundle", "create", "-q", str(bundle), "main~..main")
    command = ("add-repo", "--name", "r", "--remote", str(bundle))
    refused = daemon.run(*command, check=False)
    assert refused.returncode != 0
    said = {"SHA-1 names": "SHA-256", "older commits": "lacks these prerequisite commits"}
    assert said[lacks] in refused.stderr


def test_commits_that_come_later(daemon: DaemonProcess, local_remote: LocalRemote) -> None:
    oid = git(local_remote.path, "rev-parse", "main")
    git(local_remote.path, "update-ref", "-d", "refs/heads/main")
    mount = daemon.add_repo("r", str(local_remote.path), "--refresh", "never")
    git(local_remote.path, "update-ref", "refs/heads/main", oid)
    daemon.run("fetch", "--name", "r")
    assert git(mount, "rev-parse", "origin/main") == oid
    git(mount, "pull", "-q")
    assert (mount / "README.md").read_text() == "# Hello\n"
    assert git(mount, "status", "-sb") == "## main...origin/main"
    daemon.run("switch", "--name", "r", "--create", "topic")
    assert git(mount, "symbolic-ref", "HEAD") == "refs/heads/topic"


def test_a_new_repository_of_the_bundled_server(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], tmp_path: Path
) -> None:
    served = remote_repo(None)
    plain = tmp_path / "plain"
    subprocess.run(["git", "clone", "-q", served.url, str(plain)], check=True, capture_output=True)
    mount = daemon.add_repo("r", served.url, "--refresh", "never")
    assert seen(mount) == seen(plain)
    (mount / "a").write_text("a\n")
    git(mount, "add", "a")
    git(mount, "commit", "-qm", "First")
    git(mount, "push", "-q", "origin", "HEAD")
    subprocess.run(["git", "-C", str(plain), "pull", "-q"], check=True, capture_output=True)
    assert git(plain, "rev-parse", "HEAD") == git(mount, "rev-parse", "HEAD")
    daemon.run("fetch", "--name", "r")
    branch = git(mount, "branch", "--show-current")
    assert git(mount, "status", "-sb") == f"## {branch}...origin/{branch}"
