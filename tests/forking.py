"""Forks processes of ours from one that has loaded what they need, as the daemon does with workers.

A new interpreter loads the server in a second and a mount in a third of one; a fork has it. A
request is one JSON object on a SOCK_SEQPACKET pair, with four descriptors attached: the standard
streams of the new process, and a pipe that its exit status is written into.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.watching import watch_environment

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 1 << 16


class ForkedProcess:
    """One of them, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, stdin: int, stdout: int, status: int) -> None:
        self.pid = pid
        self.stdin: IO[bytes] = open(stdin, "wb", buffering=0)  # noqa: SIM115
        self.stdout: IO[bytes] = open(stdout, "rb")  # noqa: SIM115
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115
        self._reading = threading.Lock()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode if self._has_ended(0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _has_ended(self, within_s: float | None) -> bool:
        if self.returncode is None:
            if not select.select([self._status], [], [], within_s)[0]:
                return False
            with self._reading:  # several threads may wait
                if self.returncode is None:
                    self.returncode = int(self._status.read(16))
                    self.stdin.close()
                    self.stdout.close()
        return True

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that forks them, as long as this one lives."""

    def __init__(self, module: str, *loaded: str, **environment: str) -> None:
        """Each runs ``main`` of `module`, as ``python -m`` would; `loaded` are modules that it
        loads later. `environment`: what decides about what is loaded, beside ours."""
        self._lock = threading.Lock()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tests.forking import main; main()", module, *loaded],
                stdin=theirs.fileno(),
                cwd=ROOT,
                env=os.environ | environment,
            )
        atexit.register(self.end)

    def end(self) -> None:
        self._connection.close()
        self._process.wait()

    def start(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        stderr: IO[Any],
        stdout_too: bool = False,
    ) -> ForkedProcess:
        """`environment` is the whole of it. Its standard output is a pipe, unless that is to go
        where its errors go."""
        return self._start(arguments, environment, stderr, stderr if stdout_too else None)

    def run(
        self, *arguments: str, environment: Mapping[str, str], timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, without an input. Raises: subprocess.TimeoutExpired."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = self._start(arguments, environment, stderr, stdout)
            process.stdin.close()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout)
                raise
            printed = [_text_of(stream) for stream in (stdout, stderr)]
        assert process.returncode is not None
        return subprocess.CompletedProcess(arguments, process.returncode, *printed)

    def _start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stderr: IO[Any],
        stdout_to: IO[Any] | None,
    ) -> ForkedProcess:
        stdin, to_stdin = os.pipe()
        from_stdout, stdout = os.pipe()
        from_status, status = os.pipe()
        request = json.dumps(
            {"arguments": arguments, "environment": dict(environment), "folder": os.getcwd()}
        ).encode()
        out = stdout if stdout_to is None else stdout_to.fileno()
        theirs = [stdin, out, stderr.fileno(), status]
        with self._lock:
            socket.send_fds(self._connection, [request], theirs)
            pid = int(self._connection.recv(MOST_BYTES))
        for descriptor in (stdin, stdout, status):
            os.close(descriptor)
        return ForkedProcess(pid, to_stdin, from_stdout, from_status)


def _text_of(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


@functools.cache
def programs() -> Forks:
    """For ``artifact-fs`` as one who types a command has it: a new interpreter takes 0.3 s."""
    return Forks("artifactfs.cli.main", *_below("artifactfs.cli"), "artifactfs.daemon.control")


def _below(package: str) -> list[str]:
    paths = importlib.import_module(package).__path__
    return [found.name for found in pkgutil.walk_packages(paths, f"{package}.")]


@functools.cache
def mounts() -> Forks:
    """For all mounts of this process of tests."""
    return Forks("tests.fs.mount_driver", **watch_environment(Path(os.devnull)))


@functools.cache
def servers() -> Forks:
    """For all servers of this process of tests."""
    return Forks("artifactfs.server.cli", "artifactfs.server.service", "artifactfs.server.app")


def main() -> None:
    """The process that forks: no thread, and nothing but waiting."""
    connection = socket.socket(fileno=os.dup(0))
    module = importlib.import_module(sys.argv[1])
    for name in sys.argv[2:]:
        importlib.import_module(name)
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
                with contextlib.suppress(BrokenPipeError):  # nobody asks any more
                    os.write(status, b"%d" % code)
                os.close(status)
                continue
            data, received, _, _ = socket.recv_fds(connection, MOST_BYTES, 4)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                _run(module, json.loads(data), received)
            child = os.pidfd_open(pid)
            children[child] = pid, received.pop()
            waiting.register(child, select.POLLIN)
            for one in received:
                os.close(one)
            connection.send(b"%d" % pid)


def _run(module: Any, request: dict[str, Any], received: list[int]) -> NoReturn:
    code = 1
    try:
        for number, descriptor in enumerate(received[:3]):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = [module.__name__, *request["arguments"]]
        module.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
