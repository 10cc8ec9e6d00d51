"""Forks the processes that serve mounts: a new interpreter loads what they need in a third of a
second, a fork has it, as in the daemon.

A request is one JSON object on a SOCK_SEQPACKET pair, with four descriptors attached: the new
process's standard streams, and a pipe that its exit status is written into.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.watching import watch_environment

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 1 << 16


class DriverProcess:
    """One of them, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, stdin: int, stdout: int, status: int) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = open(stdin, "wb", buffering=0)  # noqa: SIM115
        self.stdout: IO[bytes] | None = open(stdout, "rb")  # noqa: SIM115
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode if self._has_ended(0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("a process that serves a mount", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _has_ended(self, within_s: float | None) -> bool:
        if self.returncode is None:
            if not select.select([self._status], [], [], within_s)[0]:
                return False
            self.returncode = int(self._status.read(16))
            for stream in (self.stdin, self.stdout, self._status):
                assert stream is not None
                stream.close()
        return True

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Forks:
    """The process that forks them, as long as this one lives."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tests.fs.driver_fork import main; main()"],
                stdin=theirs.fileno(),
                cwd=ROOT,
                env=os.environ | watch_environment(Path(os.devnull)),
            )
        atexit.register(self.end)

    def end(self) -> None:
        self._connection.close()
        self._process.wait()

    def start(self, config: str, environment: dict[str, str], stderr: IO[bytes]) -> DriverProcess:
        """`environment` is the whole of it."""
        stdin, to_stdin = os.pipe()
        from_stdout, stdout = os.pipe()
        from_status, status = os.pipe()
        request = json.dumps({"config": config, "environment": environment}).encode()
        theirs = [stdin, stdout, stderr.fileno(), status]
        socket.send_fds(self._connection, [request], theirs)
        for descriptor in (stdin, stdout, status):
            os.close(descriptor)
        return DriverProcess(
            int(self._connection.recv(MOST_BYTES)), to_stdin, from_stdout, from_status
        )


def main() -> None:
    """The process that forks: no thread, and nothing but waiting."""
    connection = socket.socket(fileno=os.dup(0))
    driver = importlib.import_module("tests.fs.mount_driver")
    gc.freeze()
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}
    while True:
        for descriptor, _ in waiting.poll():
            if descriptor in children:
                waiting.unregister(descriptor)
                pid, status = children.pop(descriptor)
                os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(status, b"%d" % code)
                os.close(status)
                continue
            data, received, _, _ = socket.recv_fds(connection, MOST_BYTES, 4)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                _serve(driver, json.loads(data), received)
            child = os.pidfd_open(pid)
            children[child] = pid, received.pop()
            waiting.register(child, select.POLLIN)
            for one in received:
                os.close(one)
            connection.send(b"%d" % pid)


def _serve(driver: Any, request: dict[str, Any], received: list[int]) -> NoReturn:
    code = 1
    try:
        for number, descriptor in enumerate(received[:3]):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["mount_driver", request["config"]]
        driver.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
