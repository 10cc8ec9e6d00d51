"""The process that forks mount workers.

It imports everything a worker needs once, stays single-threaded, calls `gc.freeze` and then only
waits: a fork of it is ready within milliseconds and shares nearly all of its memory (measured:
1.5 ms and 3.5 MB, against 265 ms and 50 MB for a new interpreter).

Messages on a SOCK_SEQPACKET pair, one JSON object each. ``{"fork": ID, "spec": {…}}`` with the
worker's end of its channel attached (SCM_RIGHTS) is answered by ``{"forked": ID, "pid": PID}``
with a pidfd attached, so the supervisor can wait for and signal the worker without races over its
pid; or by ``{"forked": ID, "error": WHY}``. ``{"exited": PID, "status": STATUS}`` follows when it
was reaped (`os.waitstatus_to_exitcode`).

When the supervisor is gone (end of file), workers unmount by themselves, since their channels
ended too; the ones that do not within `LINGER_S` are killed, so a new daemon can mount again.
"""

from __future__ import annotations

import array
import errno
import gc
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

MAX_MESSAGE = 256 << 10  # bytes; settings are a few hundred
LINGER_S = 3.0


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and the descriptors attached to it; None at the end."""
    size = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    data, ancillary, _flags, _address = connection.recvmsg(MAX_MESSAGE, size)
    return (json.loads(data) if data else None), descriptors(ancillary)


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The file descriptors in the ancillary data of a `recvmsg`, made close-on-exec."""
    received = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    for descriptor in received:
        os.set_inheritable(descriptor, False)
    return list(received)


def attached(descriptor: int) -> list[tuple[int, int, array.array[int]]]:
    """Ancillary data that carries `descriptor`."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]


@dataclass(slots=True)
class ForkServerProcess:
    """A fork server as its parent has it: when `connection` is closed, it ends."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    used: bool = False

    def end_unless_used(self) -> None:
        """At once, where nobody has taken it over: it has no workers."""
        if self.used:
            return
        self.connection.close()
        self.process.kill()
        self.process.wait()


def start(log_level: str) -> ForkServerProcess:
    """A fork server of its own session: a terminal's Ctrl-C is for the supervisor alone.

    Needs no event loop, so that it can load its modules while the supervisor loads its own.
    Blocks for some 2 ms. Raises: OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-m", "artifactfs.daemon.supervisor.forkserver"]
    try:
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), log_level],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return ForkServerProcess(process, ours)


class ForkServer:
    """The loop of the fork server process."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._children: dict[int, tuple[int, list[str]]] = {}  # pidfd → pid, mounts

    def run(self) -> None:
        """Fork on request until the supervisor closes its end, then see the workers out."""
        while True:
            for descriptor, _events in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._serve_one():
                    self._see_out()
                    return

    def _serve_one(self) -> bool:
        try:
            message, received = receive(self._connection)
        except ConnectionResetError:
            return False
        if message is None:
            return False
        try:
            pid, pidfd = self._fork(message["spec"], received)
        except OSError as error:  # no more processes, memory or descriptors: for now
            self._send({"forked": message["fork"], "error": error.strerror})
            return True
        self._children[pidfd] = (pid, list(message["spec"].get("served_at", ())))
        self._poll.register(pidfd, select.POLLIN)
        self._send({"forked": message["fork"], "pid": pid}, pidfd)
        return True

    def _fork(self, spec: dict[str, Any], received: list[int]) -> tuple[int, int]:
        """A worker's pid and pidfd. Raises: OSError."""
        if not received:  # the kernel drops descriptors that would be one too many
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        channel = received[0]
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(spec, channel)
        finally:
            os.close(channel)
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _become_worker(self, spec: dict[str, Any], channel: int) -> None:
        """In the child: never returns."""
        status = 70  # EX_SOFTWARE
        try:
            self._connection.close()
            for pidfd in self._children:
                os.close(pidfd)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # until the worker handles them
            gc.enable()
            from artifactfs.daemon.worker.worker import run_worker

            status = run_worker(spec, channel)
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stderr.flush()
            finally:  # also where the log is on a full disk: never go on as a second fork server
                os._exit(status)

    def _reap(self, pidfd: int) -> None:
        pid, _served_at = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _pid, wait_status = os.waitpid(pid, 0)
        self._send({"exited": pid, "status": os.waitstatus_to_exitcode(wait_status)})

    def _send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        ancillary = [] if descriptor is None else attached(descriptor)
        try:
            self._connection.sendmsg([json.dumps(message).encode()], ancillary)
        except OSError:
            log.debug("the supervisor is gone")  # its end of file is handled by the loop

    def _see_out(self) -> None:
        """Wait for the workers, then kill, then abort their FUSE connections."""
        self._poll.unregister(self._connection)
        self._wait(LINGER_S)
        for pidfd in self._children:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self._wait(1.0)
        if self._children:
            from artifactfs.daemon.host import mounts

            for _pid, served_at in self._children.values():
                for mount_point in served_at:
                    mounts.abort(mount_point)
            self._wait(LINGER_S)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._children and (left := deadline - time.monotonic()) > 0:
            for descriptor, _events in self._poll.poll(left * 1000):
                self._reap(descriptor)


def preload() -> None:
    """Import what workers need, and nothing of the command line or the server."""
    # httpx imports its own command line (click, rich, pygments) unless that import fails.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    import encodings.idna
    import encodings.latin_1  # noqa: F401
    import ssl

    import httpcore  # noqa: F401 httpx imports it with its first client

    import artifactfs.daemon.worker.worker
    import artifactfs.git.streams.process
    import artifactfs.git.wire.http  # noqa: F401

    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # OpenSSL starts up with the first


def main() -> None:
    """``python -m artifactfs.daemon.supervisor.forkserver DESCRIPTOR LOG_LEVEL``."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    from artifactfs.daemon.host import logs

    logs.configure(sys.argv[2])
    preload()
    gc.collect()
    gc.freeze()
    ForkServer(connection).run()


if __name__ == "__main__":
    main()
