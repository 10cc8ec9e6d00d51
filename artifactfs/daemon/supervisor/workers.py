"""The supervisor's side of the fork server: starting workers and waiting for their end."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from artifactfs.daemon.supervisor.forkserver import ForkServerProcess, start
from artifactfs.daemon.supervisor.keeper import MAX_MESSAGE, Kept, KeptMount
from artifactfs.errors import DaemonError
from artifactfs.system.descriptors import attached, descriptors

log = logging.getLogger(__name__)

FORK_DEADLINE_S = 20.0  # the first fork waits for the imports of the fork server
TRIAL_DEADLINE_S = 20.0  # it takes some 10 ms
FIRST_RESTART_DELAY_S = 0.5
LONGEST_RESTART_DELAY_S = 10.0
STABLE_S = 30.0  # a fork server that lived this long is started again with the first delay
EXIT_STATUS_WAIT_S = 0.3  # the pidfd and the fork server's message come at the same moment


@dataclass(slots=True)
class WorkerProcess:
    """A forked worker: `pidfd` becomes readable when it has ended. One task waits at a time."""

    pid: int
    pidfd: int
    stream: trio.SocketStream

    async def wait(self) -> None:
        """Until the process ended."""
        await trio.lowlevel.wait_readable(self.pidfd)

    def signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            log.debug("the worker has ended already", extra={"worker": self.pid})

    def close(self) -> None:
        """Once it has ended."""
        os.close(self.pidfd)


async def _status_of(process: subprocess.Popen[bytes]) -> int:
    """Of a process that ends by itself."""
    descriptor = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return process.wait()


class WorkerPool:
    """Runs the fork server, and starts it again when it dies (its workers live on meanwhile)."""

    def __init__(
        self,
        log_level: str,
        started: ForkServerProcess | None = None,
        *,
        keep_at: Path | None = None,
    ) -> None:
        """`started`: a fork server to begin with, so that it is ready sooner. `keep_at`: where it
        can be asked for the mounts that outlive us (`keeper`)."""
        self._keep_at = keep_at
        self.pid: int | None = None  # of the fork server
        self._started = started
        self._log_level = log_level
        self._connection: trio.socket.SocketType | None = None
        self._ready = trio.Event()
        self._numbers = itertools.count(1)
        self._forks: dict[int, tuple[trio.Event, list[tuple[int, int] | str]]] = {}
        self._statuses: dict[int, int] = {}
        self._answers: dict[bytes, bytes] = {}
        self.kept = Kept()
        """Mounts that outlive their worker."""
        self._told = trio.Event()
        self._sending = trio.Lock()
        """One task waits at a time until the fork server has taken what was sent before."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a fork server running until cancelled; it then sees the workers out by itself.

        Raises: OSError where not even the first can be started.
        """
        process, connection = await self._start()
        task_status.started()
        delay = FIRST_RESTART_DELAY_S
        while True:
            began = trio.current_time()
            try:
                await self._receive(connection)
            finally:
                self._lost()
                connection.close()
            log.error("the fork server ended", extra={"status": await _status_of(process)})
            lived = trio.current_time() - began
            delay = FIRST_RESTART_DELAY_S if lived > STABLE_S else delay
            while True:
                await trio.sleep(delay)
                delay = min(delay * 2, LONGEST_RESTART_DELAY_S)
                try:
                    process, connection = await self._start()
                except OSError as error:  # no memory for it, say: the mounts go on meanwhile
                    log.error("cannot start the fork server: %s", error)
                else:
                    break

    async def _start(self) -> tuple[subprocess.Popen[bytes], trio.socket.SocketType]:
        """Raises: OSError."""
        server, self._started = self._started, None
        if server is None:
            server = await trio.to_thread.run_sync(start, self._log_level)
        server.used = True
        self.pid = server.process.pid
        server.connection.setblocking(False)
        self._connection = connection = trio.socket.from_stdlib_socket(server.connection)
        with suppress(OSError):  # it ends already
            if self._keep_at is not None:
                await self._send(connection, {"keep_at": str(self._keep_at)})
            for mount in tuple(self.kept.mounts.values()):
                await self._send(connection, mount.message, mount.descriptor)
        self._ready.set()
        return server.process, connection

    async def _send(
        self, connection: trio.socket.SocketType, message: dict[str, Any], *carried: int
    ) -> None:
        """Waits while the fork server has much to read, as when it is being started. Raises:
        OSError."""
        async with self._sending:
            await connection.sendmsg([json.dumps(message).encode()], attached(*carried))

    async def _receive(self, connection: trio.socket.SocketType) -> None:
        space = socket.CMSG_SPACE(4)
        while True:
            try:
                data, ancillary, _flags, _address = await connection.recvmsg(MAX_MESSAGE, space)
            except ConnectionResetError:
                return
            if not data:
                return
            message = json.loads(data)
            if "forked" in message:
                self._forked(message, descriptors(ancillary))
            elif "exited" not in message:
                self.kept.take(message, descriptors(ancillary))
            else:
                self._statuses[message["exited"]] = message["status"]
                self._told.set()
                self._told = trio.Event()

    def _forked(self, message: dict[str, Any], received: list[int]) -> None:
        waiting = self._forks.get(message["forked"])
        if waiting is None:  # its caller has given up: nobody would watch over it
            for pidfd in received:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
            return
        event, answer = waiting
        if received:
            answer.append((message["pid"], received[0]))
        else:  # the kernel drops a descriptor that would be one too many
            answer.append(str(message.get("error") or os.strerror(errno.EMFILE)))
        event.set()

    async def keep(self, mount: KeptMount) -> None:
        """Keep a mount of the daemon before, and have the fork server keep it, too."""
        self.kept.take(mount.message, [mount.descriptor])
        if self._connection is not None:
            with suppress(OSError):  # the next one is told all of them
                await self._send(self._connection, mount.message, mount.descriptor)

    async def let_go(self, name: str) -> None:
        """Keep the mount of `name` no more: it ends with its worker."""
        self.kept.let_go(name)
        if self._connection is not None:
            with suppress(OSError):  # it has ended, and lets go of everything
                await self._send(self._connection, {"let_go": name})

    async def would_go_on(self, mount: KeptMount) -> bool:
        """Whether workers of ours would begin a session as the one did that has begun `mount`.
        Also waits until workers can be forked. Raises: DaemonError where that cannot be told."""
        init = mount.held.init
        if init not in self._answers:
            self._answers[init] = await self._try(init)
        return self._answers[init] == mount.held.answer

    async def _try(self, init: bytes) -> bytes:
        """What a worker of ours would answer. Raises: DaemonError."""
        trial = await self.fork({"trial": init.hex()})
        answer = b""
        with trio.move_on_after(TRIAL_DEADLINE_S), suppress(trio.BrokenResourceError):
            async for part in trial.stream:
                answer += part
        trial.signal(signal.SIGKILL)  # where it hangs
        with trio.CancelScope(shield=True):
            await trial.stream.aclose()
            await trial.wait()
        trial.close()
        if not answer:
            raise DaemonError("no process of this version begins a mount", hint="see the log")
        return answer

    async def end_kept(self, mount: KeptMount) -> None:
        """Have the worker of the daemon before unmount and end."""
        mount.signal(signal.SIGTERM)
        await self.let_go(mount.message["held"])

    def to_take_over(self, name: str) -> KeptMount | None:
        """The mount of `name`, where a new worker can go on with it."""
        mount = self.kept.mounts.get(name)
        if mount is not None and not mount.held.alive:  # somebody has unmounted it
            self.kept.let_go(name)
            return None
        return mount

    def _lost(self) -> None:
        self._connection = None
        self._ready = trio.Event()
        for event, _answer in self._forks.values():
            event.set()

    async def fork(self, spec: dict[str, Any], mount: KeptMount | None = None) -> WorkerProcess:
        """A new worker that runs `spec`, and goes on with `mount`. Raises: DaemonError."""
        carried: tuple[int, ...] = ()
        if mount is not None:
            spec = {**spec, "held": mount.message}
            carried = (mount.descriptor,)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        number = next(self._numbers)
        event, answer = self._forks[number] = (trio.Event(), [])
        try:
            with trio.fail_after(FORK_DEADLINE_S), theirs:
                await self._ready.wait()
                if self._connection is None:
                    raise DaemonError("the fork server ended before it started a process")
                message = {"fork": number, "spec": spec}
                await self._send(self._connection, message, theirs.fileno(), *carried)
                await event.wait()
        except (trio.TooSlowError, OSError) as error:
            ours.close()
            raise DaemonError("cannot start a process for the mount", hint="see the log") from error
        except BaseException:
            ours.close()
            raise
        finally:
            del self._forks[number]
        if not answer or isinstance(answer[0], str):
            ours.close()
            why = answer[0] if answer else "the fork server ended"
            raise DaemonError(f"cannot start a process for the mount: {why}")
        pid, pidfd = answer[0]
        if mount is not None:
            self.kept.served_by(mount.message["held"], pid)
        ours.setblocking(False)
        return WorkerProcess(pid, pidfd, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))

    async def exit_status(self, pid: int) -> int | None:
        """The status of a worker that ended (negative: the signal), None if nobody told."""
        with trio.move_on_after(EXIT_STATUS_WAIT_S):
            while pid not in self._statuses:
                await self._told.wait()
        return self._statuses.pop(pid, None)
