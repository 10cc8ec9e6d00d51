"""``artifact-fs run``, ``shell`` and ``snapshot``."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mount_table import mounted_at, mounts_below
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import PROGRAMS, ArtifactsProcess, DaemonProcess, wait_until


def git(*arguments: str | Path) -> str:
    done = subprocess.run(["git", *map(str, arguments)], check=True, capture_output=True)
    return done.stdout.decode().strip()


def test_run_exits_with_the_code_of_the_command(daemon: DaemonProcess, local_remote: Any) -> None:
    remote = str(local_remote.path)
    done = daemon.run("run", remote, "--", "cat", "README.md")
    assert (done.stdout, done.stderr) == ("# Hello\n", "")
    done = daemon.run("run", remote, "--", "sh", "-c", "exit 7", check=False)
    assert (done.returncode, done.stderr) == (7, "")
    done = daemon.run("run", remote, "--", "sh", "-c", "kill -9 $$", check=False)
    assert done.returncode == 128 + signal.SIGKILL
    done = daemon.run("run", remote, "--", "no-such-program", check=False)
    assert done.returncode == 2 and "no-such-program" in done.stderr
    assert daemon.json("list-repos") == [] and not mounts_below(daemon.mounts)
    for words in (["run", remote], ["run", remote, "--"], ["run", "--", "ls"]):
        done = daemon.run(*words, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 2, done.stderr


KERNEL = pytest.param(
    "kernel", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")
)


@pytest.mark.parametrize("writes", ["fuse", KERNEL])
def test_run_pushes_or_keeps(daemon: DaemonProcess, local_remote: Any, writes: str) -> None:
    remote = str(local_remote.path)
    script = "echo x >> README.md && git commit -qam Changed"
    kind = ("--writes", writes)
    done = daemon.run("run", remote, *kind, "--push", "topic", "--", "sh", "-c", script)
    assert "pushed" in done.stderr and len(done.stderr.splitlines()) == 1
    assert git("-C", remote, "log", "-1", "--format=%s", "topic") == "Changed"
    assert daemon.json("list-repos") == []
    # Another message: in the same second it would be the same commit, which the remote has.
    script = script.replace("Changed", "Kept") + "; echo more > more; exit 3"
    words = ("run", remote, *kind, "--push", "never", "--", "sh", "-c", script)
    done = daemon.run(*words, check=False)
    assert done.returncode == 3
    (kept,) = daemon.json("list-repos")
    assert done.stderr == (
        f"{kept['name']}: kept 1 commit and 1 changed path of {kept['mount_point']}; "
        f"back with: artifact-fs remount {kept['name']}\n"
    )
    assert "never" not in git("-C", remote, "branch")
    again = daemon.run("run", remote, "--name", kept["name"], "--", "cat", "more", "README.md")
    assert again.stdout == "more\n# Hello\nx\n"


def test_the_names_that_containers_use(
    daemon: DaemonProcess, artifacts_server: ArtifactsProcess, odd_repository: OddRepository
) -> None:
    """The token reaches neither the command nor its git configuration."""
    served = artifacts_server.create("run-names", odd_repository.path)
    done = subprocess.run(
        [PROGRAMS / "artifact-fs", "run", "--", "sh", "-c", "env; git config -l; git ls-files"],
        env=daemon.environment
        | {"ARTIFACTS_GIT_REMOTE": served.remote, "ARTIFACT_FS_TOKEN": served.token},
        capture_output=True,
        text=True,
        check=True,
    )
    assert served.token not in done.stdout + done.stderr
    assert "README" in done.stdout


def test_signals_reach_the_command(daemon: DaemonProcess, local_remote: Any) -> None:
    """SIGTERM: the command may clean up, and its code is ours."""
    marker = daemon.directory / "begun"
    script = f"trap 'echo over; exit 5' TERM; touch {marker}; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [PROGRAMS / "artifact-fs", "run", local_remote.path, "--", "sh", "-c", script],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(marker.exists, "the command")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "over\n"
    assert process.returncode == 5
    assert daemon.json("list-repos") == []


def test_shell(daemon: DaemonProcess, local_remote: Any) -> None:
    """On a terminal: what is typed runs in the workspace."""
    ours, theirs = pty.openpty()
    where = daemon.directory / "here"
    process = subprocess.Popen(
        [PROGRAMS / "artifact-fs", "shell", local_remote.path, "--at", where, "--branch", "topic"],
        env=daemon.environment | {"SHELL": "/bin/sh", "PS1": "$ "},
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, b"echo mine > mine\ngit add mine\ngit commit -qm Typed\nexit\n")
    said = process.communicate(timeout=60)[1]
    os.close(ours)
    assert process.returncode == 0
    assert "kept 1 commit" in said and not mounted_at(where)


def test_snapshots(daemon: DaemonProcess, local_remote: Any) -> None:
    mount = daemon.add_repo("hello", str(local_remote.path))
    (mount / "new").write_text("new")
    taken = daemon.json("snapshot", "create", "--name", "hello", "-m", "Why")
    assert daemon.run("snapshot", "create", "second", "--name", "hello", "--push").stdout == (
        "second\n"
    )
    (mount / "new").unlink()
    undo = daemon.run("snapshot", "restore", taken["name"], "--name", "hello").stdout.strip()
    assert (mount / "new").read_text() == "new"
    listed = daemon.run("snapshot", "list", "--name", "hello").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [taken["name"], "second", undo]
    assert [line.endswith(" pushed") for line in listed] == [False, True, False]
    refused = daemon.run("snapshot", "create", "second", "--name", "hello", check=False)
    assert refused.returncode == 1 and "second" in refused.stderr
