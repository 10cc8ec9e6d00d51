"""With us in systemd's place: what it stores for the daemon outlives all of its processes."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.mount_table import mounted_at, times_mounted
from tests.e2e.processes import PROGRAMS, DaemonProcess, ServedRepository, wait_until
from tests.e2e.test_outlive import KINDS

LAUNCH = """
import fcntl, os, sys
given = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",") if fd]
for number, fd in enumerate(given):
    os.dup2(fd, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)))
os.environ["LISTEN_FDNAMES"] = sys.argv[2]
os.execv(sys.argv[3], sys.argv[3:])
"""


PROGRAM = """
import os, sys
fd = os.open("README.md", os.O_RDONLY)
print("ready", flush=True)
for line in sys.stdin:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0)
    print("read", flush=True)
"""
"""Not in this process: whoever starts a daemon closes its descriptors in the child, and waits for
the daemon if one is of a mount that nobody serves."""


class Manager:
    """Takes descriptors (sd_notify(3)) and gives them to the next daemon (sd_listen_fds(3))."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored: dict[str, list[int]] = {}
        self.is_ready = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        while True:
            data, ancillary, _flags, _from = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
            received = array.array("i")
            for _level, _kind, content in ancillary:
                received.frombytes(content)
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTORE" in fields:
                self.stored.setdefault(fields["FDNAME"], []).extend(received)
            if "FDSTOREREMOVE" in fields:
                self._forget(fields["FDNAME"])
            if "READY" in fields:
                self.is_ready.set()
            if not fields:
                return

    def _forget(self, name: str) -> None:
        for descriptor in self.stored.pop(name, []):
            os.close(descriptor)

    def start(self, daemon: DaemonProcess) -> None:
        self.is_ready.clear()
        pairs = [(name, fd) for name, fds in self.stored.items() for fd in fds]
        names, given = ":".join(name for name, _ in pairs), [fd for _, fd in pairs]
        launch = [sys.executable, "-c", LAUNCH, ",".join(map(str, given)), names]
        daemon.mounts.mkdir(exist_ok=True)
        with daemon.log.open("ab") as log:
            daemon.process = subprocess.Popen(
                [*launch, PROGRAMS / "artifact-fs", "daemon", "--root", daemon.mounts],
                env=daemon.environment | {"NOTIFY_SOCKET": str(self.path)},
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        assert self.is_ready.wait(120), daemon.log_tail()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
        for name in list(self.stored):
            self._forget(name)


@pytest.fixture
def manager(idle_daemon: DaemonProcess) -> Iterator[Manager]:
    manager = Manager(idle_daemon.directory / "manager.sock")
    yield manager
    manager.close()


@pytest.mark.parametrize("worker", ["dies", "lives"])
@pytest.mark.parametrize("writes", KINDS)
def test_all_processes_are_killed_at_once(
    manager: Manager,
    idle_daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    writes: str,
    worker: str,
) -> None:
    daemon = idle_daemon
    manager.start(daemon)
    top = daemon.add_repo("odd", remote_repo().url, "--writes", writes)
    other = daemon.add_repo("other", remote_repo().url, "--writes", writes)
    wait_until(lambda: len(manager.stored.get("mount-odd", [])) == 2, "it is stored")
    served_by = int(daemon.status("odd")["pid"])
    daemon.run("umount", other)
    assert not mounted_at(other)
    wait_until(lambda: set(manager.stored) == {"mount-odd"}, "the other one is stored no more")
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=top, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdin is not None and program.stdout is not None
    assert program.stdout.readline() == b"ready\n"
    (top / "new").write_text("new")
    for _round in range(2):
        processes = daemon.orphans()
        for pid in processes:
            with suppress(ProcessLookupError):  # one of git has ended
                os.kill(pid, signal.SIGSTOP)  # so that none of them does anything meanwhile
        for pid in processes:
            if pid != served_by or worker == "dies":
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert daemon.process is not None
        daemon.process.wait()
        with suppress(ProcessLookupError):
            os.kill(served_by, signal.SIGCONT)
        manager.start(daemon)
        found = daemon.status("odd")
        assert found["state"] == "mounted" and found["error"] is None
        assert found["pid"] != served_by and times_mounted(top) == 1
        served_by = int(found["pid"])
        program.stdin.write(b"read\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"read\n"
        assert (top / "new").read_text() == "new"
        (top / "more").write_text("more")
        (top / "more").unlink()
        wait_until(lambda: len(manager.stored.get("mount-odd", [])) == 2, "it is stored again")
    program.communicate()
    assert program.returncode == 0
    assert daemon.stop() == 0
    assert not mounted_at(top)
    wait_until(lambda: not daemon.orphans(), "the fork server's end")
