"""The process that forks mount workers.

It imports everything a worker needs once, stays single-threaded, calls `gc.freeze` and then only
waits: a fork of it is ready within milliseconds and shares nearly all of its memory (measured:
1.5 ms and 3.5 MB, against 265 ms and 50 MB for a new interpreter).

Messages on a SOCK_SEQPACKET pair, one JSON object each. ``{"fork": ID, "spec": {…}}`` with the
worker's end of its channel attached (SCM_RIGHTS) is answered by ``{"forked": ID, "pid": PID}``
with a pidfd attached, so the supervisor can wait for and signal the worker without races over its
pid; or by ``{"forked": ID, "error": WHY}``. ``{"exited": PID, "status": STATUS}`` follows when it
was reaped (`os.waitstatus_to_exitcode`).

It also keeps a copy of each mount's ``/dev/fuse`` (`fs/kernel/handover.py`): a worker that has
mounted sends ``{"held": NAME, "pid": PID, …}`` (`daemon/host/outliving.py`) with the descriptor
attached, by a socket pair that all workers share, and that is passed on to the supervisor. A worker
that is to take a mount over gets the descriptor with the ``fork``. ``{"let_go": NAME}`` ends that.

When the supervisor is gone (end of file), the workers of such mounts go on, and this process keeps
the descriptors until a new supervisor has taken them (`keeper.py`). Other workers unmount by
themselves, since their channels
ended too; the ones that do not within `LINGER_S` are killed, so a new daemon can mount again.
"""

from __future__ import annotations

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

from artifactfs.daemon.supervisor.keeper import Kept, receive
from artifactfs.errors import MountError
from artifactfs.system.descriptors import attached

log = logging.getLogger(__name__)

LINGER_S = 3.0
KEEP_POLL_S = 5.0
"""So often is it looked whether a mount without a supervisor is still there."""


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
        self._kept = Kept()
        self._specs: dict[str, dict[str, Any]] = {}
        """Of the last worker of each repository."""
        self._alone = False
        self._from_workers, self._to_us = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._from_workers.setblocking(False)
        self._poll.register(self._from_workers, select.POLLIN)

    def run(self) -> None:
        """Fork on request until the supervisor closes its end, then see the workers out; keep the
        mounts that are to outlive it."""
        while True:
            for descriptor, _events in self._poll.poll():
                if descriptor == self._from_workers.fileno():
                    self._hear_workers()
                elif descriptor in self._children:
                    self._reap(descriptor)
                elif not self._serve_one():
                    self._see_out()
                    return

    def _hear_workers(self) -> None:
        """Take what workers have sent so far."""
        while True:
            try:
                message, received = receive(self._from_workers)
            except BlockingIOError:
                return
            if message is not None:
                self._hold(message, received)

    def _hold(self, message: dict[str, Any], received: list[int]) -> None:
        self._kept.take(message, received)
        if "let_go" in message:
            self._send(message)
        elif received:
            self._send(message, received[0])

    def _serve_one(self) -> bool:
        try:
            message, received = receive(self._connection)
        except ConnectionResetError:
            return False
        if message is None:
            return False
        if "fork" not in message:
            self._kept.take(message, received)
            return True
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
        needed = 1 if spec.get("held") is None else 2
        try:
            if len(received) < needed:  # the kernel drops descriptors that would be one too many
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pid = os.fork()
            if pid == 0:
                self._become_worker(spec, received)
            name = spec.get("settings", {}).get("name")
            if name is not None:
                self._specs[name] = spec
            if needed == 2:
                self._kept.served_by(name, pid)
        finally:
            for descriptor in received:
                os.close(descriptor)
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _become_worker(self, spec: dict[str, Any], received: list[int]) -> None:
        """In the child: never returns."""
        status = 70  # EX_SOFTWARE
        try:
            self._connection.close()
            self._from_workers.close()
            self._kept.close()
            for pidfd in self._children:
                os.close(pidfd)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)  # until the worker handles them
            if "trial" in spec:
                from artifactfs.fs.mount.trial import answer_to

                os.write(received[0], answer_to(bytes.fromhex(spec["trial"])))
                os._exit(0)
            if spec.get("refuses"):
                from artifactfs.daemon.host.refusing import refuse

                for number in (signal.SIGTERM, signal.SIGUSR1):  # it has nothing to put away
                    signal.signal(number, signal.SIG_DFL)
                os._exit(refuse(received[1]))
            gc.enable()
            from artifactfs.daemon.worker.worker import run_worker

            status = run_worker(spec, received, self._to_us)
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stderr.flush()
            finally:  # also where the log is on a full disk: never go on as a second fork server
                os._exit(status)

    def _reap(self, pidfd: int) -> None:
        self._hear_workers()  # what it has sent before it ended comes first
        pid, served_at = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        name = self._kept.name_of(pid) if self._alone else None  # its number is its own until now
        _pid, wait_status = os.waitpid(pid, 0)
        self._send({"exited": pid, "status": os.waitstatus_to_exitcode(wait_status)})
        if name in self._kept.stopped:
            self._unmount(served_at)
            self._kept.let_go(name)
        elif name is not None:
            self._replace(name)

    def _unmount(self, served_at: list[str]) -> None:
        """What a worker that was to end has left, since it was killed meanwhile, or knew of no
        mount."""
        from artifactfs.daemon.host import mounts

        for mount_point in served_at:
            try:
                if mounts.mounts_at(mount_point, follow=False):
                    mounts.detach(mount_point)
            except MountError as error:
                log.error("left mounted: %s", error)

    def _replace(self, name: str) -> None:
        """Without a supervisor: fork the next worker for a mount that is kept. One of them: if that
        dies as well, the mount ends."""
        spec = self._specs.pop(name, None)
        if spec is None:
            self._kept.let_go(name)
            return
        mount = self._kept.mounts[name]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.close()  # nobody listens
        carried = [theirs.detach(), os.dup(mount.descriptor)]
        try:
            new, pidfd = self._fork({**spec, "held": mount.message}, carried)
        except OSError as error:
            log.error("cannot start a process for the mount: %s", error, extra={"repo": name})
            self._kept.let_go(name)
            return
        self._specs.pop(name, None)
        self._children[pidfd] = (new, list(spec.get("served_at", ())))
        self._poll.register(pidfd, select.POLLIN)

    def _send(self, message: dict[str, Any], *carried: int) -> None:
        try:
            self._connection.sendmsg([json.dumps(message).encode()], attached(*carried))
        except OSError:
            log.debug("the supervisor is gone")  # its end of file is handled by the loop

    def _see_out(self) -> None:
        """Wait for the workers whose mounts end with them, then kill, then abort their FUSE
        connections. Keep the others."""
        self._poll.unregister(self._connection)
        self._connection.close()
        self._wait(LINGER_S)
        for pidfd in self._leaving():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self._wait(1.0)
        if self._leaving():
            from artifactfs.daemon.host import mounts

            for pidfd in self._leaving():
                for mount_point in self._children[pidfd][1]:
                    mounts.abort(mount_point)
            self._wait(LINGER_S)
        self._keep()

    def _leaving(self) -> list[int]:
        """The pidfds of workers whose mounts nobody keeps."""
        children = self._children.items()
        return [pidfd for pidfd, (pid, _mounts) in children if self._kept.name_of(pid) is None]

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._leaving() and (left := deadline - time.monotonic()) > 0:
            self._look(left * 1000)

    def _look(self, milliseconds: float | None) -> list[int]:
        """Hear and reap workers; the descriptors that are of something else."""
        others = []
        for descriptor, _events in self._poll.poll(milliseconds):
            if descriptor == self._from_workers.fileno():
                self._hear_workers()
            elif descriptor in self._children:
                self._reap(descriptor)
            else:
                others.append(descriptor)
        return others

    def _keep(self) -> None:
        """Until a new supervisor has everything, or there is nothing left."""
        self._alone = True
        for name in self._kept.unserved():  # the worker has died with the supervisor
            self._replace(name)
        listener = self._kept.listener
        if listener is not None:
            self._poll.register(listener, select.POLLIN)
        while self._kept.alive():
            if self._look(KEEP_POLL_S * 1000) and self._kept.hand_over():
                return
        self._wait(LINGER_S)


def preload() -> None:
    """Import what workers need, and nothing of the command line or the server."""
    # httpx imports its own command line (click, rich, pygments) unless that import fails.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    import encodings.idna
    import encodings.latin_1  # noqa: F401
    import ssl

    import httpcore  # noqa: F401 httpx imports it with its first client

    # Not when they are needed: by then another version may be installed.
    import artifactfs.daemon.host.mounts
    import artifactfs.daemon.host.refusing
    import artifactfs.daemon.worker.worker
    import artifactfs.fs.mount.trial
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
