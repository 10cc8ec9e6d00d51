"""``artifact-fs mount`` and ``umount``: mounts in one line, with a daemon of the user's own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any
from urllib.parse import quote

from tests.e2e.mount_table import descendants, mounted_at
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import (
    PROGRAMS,
    ArtifactsProcess,
    DaemonProcess,
    end_daemon_of,
    wait_until,
)
from tests.e2e.test_crashes import has_ended


def test_umount_clears_what_a_dead_daemon_left(
    idle_daemon: DaemonProcess, local_remote: Any
) -> None:
    idle_daemon.start()
    mount = idle_daemon.add_repo("hello", str(local_remote.path))
    everybody = [idle_daemon.pid, *descendants(idle_daemon.pid)]
    # Stopped first, so that no one sees the other go, and cleans up.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):  # a git that has ended meanwhile
                os.kill(pid, number)
    assert idle_daemon.process is not None
    idle_daemon.process.wait()
    wait_until(lambda: all(map(has_ended, everybody)), "the mount's death")
    idle_daemon.run("umount", mount)
    assert not mounted_at(mount)
    (repo,) = idle_daemon.json("list-repos")
    assert repo["state"] == "unmounted"


def test_mount_and_umount_in_one_line(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    """`mount` starts a daemon of its own."""
    where = idle_daemon.directory / "src" / "hello"
    try:
        answer = idle_daemon.json("mount", str(local_remote.path), where)
        assert answer["mount_point"] == str(where)
        (where / "mine").write_text("kept")
        idle_daemon.run("umount", where)
        assert not mounted_at(where)
        idle_daemon.run("mount", str(local_remote.path), where)
        assert (where / "mine").read_text() == "kept"
        again = idle_daemon.run("mount", str(local_remote.path), where, check=False)
        assert again.returncode == 0, "it is there already, which is what was asked for"
        other = idle_daemon.directory / "other" / "hello"
        assert idle_daemon.json("mount", str(local_remote.path), other)["name"] == "hello-2"
        assert idle_daemon.run("umount", "/nowhere", check=False).returncode == 1
    finally:
        end_daemon_of(idle_daemon.state)
    assert not mounted_at(where)


def test_mount_while_a_daemon_is_being_started(
    idle_daemon: DaemonProcess, local_remote: Any
) -> None:
    """By somebody else: it has the lock, and does not listen yet."""
    idle_daemon.start()
    listening, hidden = idle_daemon.state / "control.sock", idle_daemon.state / "hidden.sock"
    listening.rename(hidden)
    where = idle_daemon.directory / "hello"
    command = [PROGRAMS / "artifact-fs", "mount", local_remote.path, where]
    mounting = subprocess.Popen(command, env=idle_daemon.environment, stderr=subprocess.DEVNULL)
    log = idle_daemon.state / "daemon.log"
    wait_until(lambda: log.exists() and "already" in log.read_text(), "the second daemon's error")
    wait_until(lambda: mounting.poll() is not None or not descendants(mounting.pid), "its end")
    assert mounting.poll() is None
    hidden.rename(listening)
    assert mounting.wait(60) == 0
    assert (where / "README.md").exists()


def test_mount_again_takes_the_token_that_is_given(
    daemon: DaemonProcess, artifacts_server: ArtifactsProcess, odd_repository: OddRepository
) -> None:
    """The stored one may have expired since it was unmounted."""
    served = artifacts_server.create("mounted-again", odd_repository.path)
    old = artifacts_server.token("mounted-again")
    where = daemon.directory / "again"
    url = served.remote.replace("://", f"://x:{quote(old['plaintext'], safe='')}@")
    daemon.run("mount", url, where)
    daemon.run("umount", where)
    artifacts_server.revoke(old["id"])
    daemon.run("mount", served.url, where)
    assert daemon.json("fetch", "--name", "again")["result"] == "up to date"
