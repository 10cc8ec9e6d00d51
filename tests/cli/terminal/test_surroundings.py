"""What a daemon was started with and in: streams, signals, environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mount_table import descendants, mounts_below
from tests.e2e.processes import PROGRAMS, DaemonProcess, wait_until


def start(daemon: DaemonProcess, *before: str, **environment: str) -> None:
    """Start it through the shell, after `before`; without a log."""
    line = " ".join([*before, 'exec "$@"'])
    command = [PROGRAMS / "artifact-fs", "daemon", "--root", daemon.mounts]
    daemon.process = subprocess.Popen(
        ["sh", "-c", line, "sh", *command], env=daemon.environment | environment
    )
    wait_until((daemon.state / "control.sock").exists, "the daemon")


def family(daemon: DaemonProcess) -> list[int]:
    return [daemon.pid, *descendants(daemon.pid)]


def is_ours(pid: int) -> bool:
    """Whether it is no program that runs in the background."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(
        mark in command
        for mark in (b"artifact-fs\0daemon", b"artifactfs.daemon.supervisor.forkserver")
    )


def test_closed_streams_are_nobodys(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    """Else a file of the overlay could get the number 2, and what is printed would go into it."""
    start(idle_daemon, "exec <&- >&- 2>&-;")
    idle_daemon.add_repo("hello", str(local_remote.path))
    for state in ("index", "history"):  # then no process of ours comes and goes
        idle_daemon.wait_for("hello", state)
    processes = [pid for pid in family(idle_daemon) if is_ours(pid)]
    assert len(processes) >= 3
    for pid in processes:
        for number in (0, 1, 2):
            assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"


def test_errors_go_nowhere_else_without_stderr(idle_daemon: DaemonProcess) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", PROGRAMS / "artifact-fs", "status", "--name", "x"],
        env=idle_daemon.environment,
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("program", ["artifact-fs", "artifacts-server"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_device_is_named(idle_daemon: DaemonProcess, program: str, unbuffered: str) -> None:
    """With buffers, what was not taken is still there when the interpreter ends."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PROGRAMS / program, "--version"],
            env={**idle_daemon.environment, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_the_terminal_is_closed(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    start(idle_daemon)
    idle_daemon.add_repo("hello", str(local_remote.path))
    idle_daemon.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    assert idle_daemon.process.wait(60) == 0  # type: ignore[union-attr]
    assert not mounts_below(idle_daemon.mounts)
    assert not (idle_daemon.state / "control.sock").exists()


def test_the_terminal_of_nohup_is_closed(idle_daemon: DaemonProcess) -> None:
    start(idle_daemon, "trap '' HUP;")
    os.kill(idle_daemon.pid, signal.SIGHUP)
    assert idle_daemon.json("list-repos") == []
    assert idle_daemon.stop() == 0


@pytest.mark.parametrize("by_mount", [False, True])
def test_a_token_in_the_environment_is_not_handed_on(
    idle_daemon: DaemonProcess, local_remote: Any, by_mount: bool
) -> None:
    if by_mount:
        subprocess.run(
            [PROGRAMS / "artifact-fs", "mount", local_remote.path, idle_daemon.directory / "hello"],
            env=idle_daemon.environment | {"ARTIFACT_FS_TOKEN": "secret"},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        mark = f"ARTIFACT_FS_ROOT={idle_daemon.state}".encode()
        processes = [int(entry.name) for entry in Path("/proc").iterdir() if _has(entry, mark)]
    else:
        start(idle_daemon, ARTIFACT_FS_TOKEN="secret")
        idle_daemon.add_repo("hello", str(local_remote.path))
        processes = descendants(idle_daemon.pid)
    assert len(processes) >= 2
    for pid in processes:
        assert not _has(Path(f"/proc/{pid}"), b"ARTIFACT_FS_TOKEN")


def _has(process: Path, mark: bytes) -> bool:
    try:
        return process.name.isdigit() and mark in (process / "environ").read_bytes()
    except OSError:
        return False


def test_a_log_that_takes_nothing(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    """As on a full disk: mounts come and go all the same."""
    start(idle_daemon, "unset PYTHONUNBUFFERED; exec 2>/dev/full;")
    mount = idle_daemon.add_repo("hello", str(local_remote.path))
    os.kill(idle_daemon.status("hello")["pid"], signal.SIGKILL)
    wait_until(lambda: idle_daemon.told("hello")["restarts"] == 1, "another worker")
    idle_daemon.run("wait", "--name", "hello")
    assert (mount / "README.md").exists()
    idle_daemon.run("unmount", "--name", "hello")
    assert idle_daemon.status("hello")["state"] == "unmounted"
    idle_daemon.run("remount", "--name", "hello")
    assert idle_daemon.stop() == 0
    assert not mounts_below(idle_daemon.mounts)


SLOW_CONFIG = """#!/bin/sh
case " $* " in *" config core.fsmonitor "*) : >{lock}; sleep 0.5; rm {lock} ;; esac
exec {git} "$@"
"""


def test_an_unmount_leaves_no_lock_of_git(
    idle_daemon: DaemonProcess, local_remote: Any, tmp_path: Path
) -> None:
    """Git that is killed while it writes the config may leave the lock, which is in the way of
    every later change of it."""
    lock, programs = tmp_path / "lock", tmp_path / "bin"
    programs.mkdir()
    (programs / "git").write_text(SLOW_CONFIG.format(lock=lock, git=shutil.which("git")))
    (programs / "git").chmod(0o755)
    start(idle_daemon, PATH=f"{programs}:{os.environ['PATH']}")
    idle_daemon.add_repo("hello", str(local_remote.path))
    wait_until(lock.exists, "git config")
    idle_daemon.run("unmount", "--name", "hello")
    assert not lock.exists()


NOBODY_KNOWN = """
import os, sys
from artifactfs.cli import main  # all of them while they can be read
from artifactfs.cli.operation import daemon, doctor, status
from artifactfs.cli.repositories import adding, mount
from artifactfs.daemon.host import logs
from artifactfs.daemon.repositories import offline, registration, registry
from artifactfs.daemon.supervisor import supervisor
from artifactfs.doctor import examination, report
os.setgid(54321)
os.setuid(54321)
sys.exit(main.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["status", "daemon", "list-repos", "doctor"])
def test_a_user_without_a_home(command: str) -> None:
    """Containers are run as users that no passwd file knows."""

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", NOBODY_KNOWN, command],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
        )

    refused = run()
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0] == "error: there is no home directory to keep things in"
    if command == "status":
        answered = run(ARTIFACT_FS_ROOT="/nowhere", ARTIFACT_FS_MOUNT_ROOT="/nowhere/mnt")
        assert (answered.returncode, answered.stdout) == (0, ""), answered.stderr


def test_the_current_directory_is_gone(idle_daemon: DaemonProcess) -> None:
    line = 'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$2" mount ./somewhere'
    done = subprocess.run(
        ["sh", "-c", line, "sh", idle_daemon.directory / "gone", PROGRAMS / "artifact-fs"],
        env=idle_daemon.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the current directory is not there any more",
        "hint: cd to one that is",
    ]
