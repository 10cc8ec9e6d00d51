"""A tree of another user (`--uid`): that user's git works in it, and nobody else gets anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import DaemonProcess, ServedRepository

OWNER, STRANGER = 65534, 65533

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def run_as(uid: int, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        user=uid,
        group=uid,
        extra_groups=[],
        env=os.environ | {"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )


def git(*arguments: str, cwd: Path) -> str:
    done = run_as(OWNER, "git", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tree(daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]) -> Path:
    for folder in (daemon.directory, daemon.mounts):
        folder.chmod(0o755)
    owner = ("--uid", str(OWNER), "--gid", str(OWNER), "--allow-other")
    return daemon.add_repo("odd", remote_repo().url, *owner)


def test_the_owners_git_works(tree: Path, daemon: DaemonProcess) -> None:
    assert git("status", "--short", cwd=tree) == ""
    (tree / "new").write_text("new\n")
    os.chown(tree / "new", OWNER, OWNER)
    git("add", "new", cwd=tree)
    git("commit", "-qm", "New", cwd=tree)
    git("push", "-q", "origin", "HEAD:refs/heads/theirs", cwd=tree)
    daemon.run("fetch", "--name", "odd")
    git("fetch", "-q", cwd=tree)
    git("branch", "more", "origin/theirs", cwd=tree)
    git("log", "-p", "--stat", cwd=tree)
    git("gc", "-q", cwd=tree)
    assert git("status", "--short", cwd=tree) == ""
    daemon.stop()
    daemon.start()
    daemon.run("status", "--name", "odd")
    assert git("log", "-1", "--format=%s", cwd=tree) == "New\n"


def test_nobody_else_gets_anything(tree: Path, daemon: DaemonProcess) -> None:
    daemon.wait_for("odd", "index")
    for uid in (STRANGER, OWNER):
        for folder in (daemon.state, daemon.state / "repos", daemon.state / "cache"):
            assert run_as(uid, "ls", folder, cwd=Path("/")).returncode != 0
        for file in ("registry.db", "control.sock", "mount-root"):
            assert run_as(uid, "test", "-r", daemon.state / file, cwd=Path("/")).returncode != 0
    own = daemon.state / "repos" / "odd"
    assert run_as(OWNER, "ls", own / "git", cwd=Path("/")).returncode == 0
    for place in (own, own / "git" / "config", own / "credentials"):
        assert run_as(STRANGER, "stat", place, cwd=Path("/")).returncode != 0


def test_what_the_owner_configures_does_not_run_as_root(
    tree: Path, daemon: DaemonProcess, tmp_path: Path
) -> None:
    daemon.wait_for("odd", "history")
    proof = daemon.directory / "proof"
    proof.mkdir()
    proof.chmod(0o777)
    command = f"touch {proof}/by-$(id -u); false"
    for name in ("core.fsmonitor", "core.sshCommand", "credential.helper", "core.hooksPath"):
        git("config", name, f"!{command}" if name == "credential.helper" else command, cwd=tree)
    gitdir = daemon.state / "repos" / "odd" / "git"
    hook = gitdir / "hooks" / "reference-transaction"
    hook.write_text(f"#!/bin/sh\n{command}\n")
    hook.chmod(0o755)
    git("config", "core.hooksPath", str(hook.parent), cwd=tree)
    for arguments in (
        ("status", "--name", "odd"),
        ("fetch", "--name", "odd"),
        ("redirect", "add", "built", "--name", "odd"),
        ("unmount", "--name", "odd"),
        ("remount", "--name", "odd"),
    ):
        daemon.run(*arguments, check=False)
    assert not (proof / "by-0").exists()
