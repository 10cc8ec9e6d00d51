"""Mounts that nobody must lose: descriptors of ``/dev/fuse``, kept and handed over.

The fork server has a copy of each for the time when there is no supervisor: it was killed, or is
being started anew. It then answers at ``STATE/keeper.sock`` (SOCK_SEQPACKET, mode 0600; one JSON
object to a message): ``{"give": true}`` is answered by what each worker has said (`outliving`),
with its descriptor attached, and ``{"end": true}``. After ``{"release": true}`` it keeps nothing
more; ``{"stop": NAME}`` (null: all) has workers unmount and end, and is answered by ``{"told":
NUMBER}``, that of the mounts that are still there.
"""

from __future__ import annotations

import array
import json
import logging
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from artifactfs.daemon.control.messages import peer_uid, socket_address
from artifactfs.fs.kernel.handover import Held, is_alive
from artifactfs.system.descriptors import attached, closing_descriptor, descriptors
from artifactfs.system.processes import open_process, start_time_of

log = logging.getLogger(__name__)

MAX_MESSAGE = 256 << 10  # bytes; settings are a few hundred
ANSWER_S = 60.0
"""Who asks waits so long: before it answers, the keeper sees out the workers that end (8 s, where
everybody gets a CPU). Who gives up too early loses every mount."""


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and the descriptors attached to it; None at the end."""
    size = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    data, ancillary, _flags, _address = connection.recvmsg(MAX_MESSAGE, size)
    return (json.loads(data) if data else None), descriptors(ancillary)


def readable(descriptor: int) -> bool:
    """Of a pidfd: whether the process has ended. Never blocks."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@dataclass(slots=True)
class KeptMount:
    """What a worker has said of its mount, and the descriptor."""

    message: dict[str, Any]
    descriptor: int

    @property
    def held(self) -> Held:
        init, answer = bytes.fromhex(self.message["init"]), bytes.fromhex(self.message["answer"])
        return Held(self.descriptor, init, answer)

    def served_by(self, pid: int) -> None:
        """Another process serves it from now on."""
        self.message["pid"] = pid
        try:
            self.message["start"] = start_time_of(pid)
        except OSError:  # it has ended
            self.message["start"] = ""

    def is_served_by(self, pid: int) -> bool:
        """Whether `pid` is that process, be it that nobody has waited for it yet; and not another
        one that has got its number since."""
        try:
            return bool(self.message["pid"] == pid and self.message["start"] == start_time_of(pid))
        except OSError:
            return False

    def process(self) -> int | None:
        """A pidfd of the process that serves it; None: it has ended."""
        return open_process(int(self.message["pid"]), str(self.message["start"]))

    def is_served(self) -> bool:
        """Whether that process goes on."""
        pidfd = self.process()
        if pidfd is None:
            return False
        with closing_descriptor(pidfd):
            return not readable(pidfd)

    def signal(self, number: int) -> None:
        """To the process that serves it, if there is one."""
        pidfd = self.process()
        if pidfd is not None:
            with closing_descriptor(pidfd), suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)


class Store(Protocol):
    """Somebody else who keeps mounts."""

    def put(self, name: str, mount: KeptMount) -> None: ...
    def remove(self, name: str) -> None: ...


@dataclass(slots=True)
class Kept:
    """The mounts that one process keeps, by repository."""

    mounts: dict[str, KeptMount] = field(default_factory=dict)
    path: Path | None = None
    listener: socket.socket | None = None
    _bound: tuple[int, int, int] | None = None
    stopped: set[str] = field(default_factory=set)
    """Those that somebody wants ended, while there is no supervisor."""
    store: Store | None = None
    """Who is to have a copy of all of them."""

    def take(self, message: dict[str, Any], received: list[int]) -> None:
        """What a worker or the supervisor says."""
        if "keep_at" in message:
            self.path = Path(message["keep_at"])
        elif "let_go" in message:
            self.let_go(message["let_go"])
        elif received:
            self.let_go(message["held"])
            self.mounts[message["held"]] = mount = KeptMount(message, received[0])
            if self.store is not None:
                self.store.put(message["held"], mount)
            self._listen()

    def let_go(self, name: str) -> None:
        kept = self.mounts.pop(name, None)
        if kept is not None:
            os.close(kept.descriptor)
            if self.store is not None:
                self.store.remove(name)

    def served_by(self, name: str, pid: int) -> None:
        mount = self.mounts.get(name)
        if mount is not None:
            mount.served_by(pid)
            if self.store is not None:
                self.store.put(name, mount)

    def name_of(self, pid: int) -> str | None:
        """The repository whose mount that process serves."""
        for name, kept in self.mounts.items():
            if kept.is_served_by(pid):
                return name
        return None

    def unserved(self) -> list[str]:
        """The mounts whose process has ended, and nobody has waited for another one."""
        return [name for name, kept in self.mounts.items() if not kept.is_served()]

    def alive(self) -> bool:
        """Whether any is still there; lets go of the others."""
        for name, kept in list(self.mounts.items()):
            if not is_alive(kept.descriptor):
                self.let_go(name)
        return bool(self.mounts)

    def close(self) -> None:
        for name in list(self.mounts):
            self.let_go(name)
        if self.listener is not None:
            self.listener.close()

    # Without a supervisor

    def _listen(self) -> None:
        """With the first mount: a socket that is there already is of a keeper that is released.
        Again where somebody has removed ours."""
        if self.path is None or (self.listener is not None and _identity(self.path) == self._bound):
            return
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        previous = os.umask(0o177)
        try:
            self.path.unlink(missing_ok=True)
            with socket_address(self.path) as address:
                listener.bind(address)
            listener.listen(8)
        except OSError as error:
            log.error("mounts end with the daemon: %s: %s", self.path, error)
            listener.close()
        else:
            self.listener, self._bound = listener, _identity(self.path)
        finally:
            os.umask(previous)

    def hand_over(self) -> bool:
        """Answer who connects; True where it has taken over everything, or has ended it."""
        assert self.listener is not None
        connection, _address = self.listener.accept()
        with connection:
            connection.settimeout(ANSWER_S)
            try:
                return peer_uid(connection) in (0, os.geteuid()) and self._answer(connection)
            except OSError as error:
                log.warning("who asked for the mounts has gone: %s", error)
                return False

    def _answer(self, connection: socket.socket) -> bool:
        while True:
            message, received = receive(connection)
            for descriptor in received:
                os.close(descriptor)
            if message is None:
                return False
            if "release" in message:
                return True
            if "stop" in message:
                told = self._stop(message["stop"])
                connection.sendmsg([json.dumps({"told": told}).encode()])
                return False
            for kept in self.mounts.values():
                payload = json.dumps(kept.message).encode()
                connection.sendmsg([payload], attached(kept.descriptor))
            connection.sendmsg([json.dumps({"end": True, "keeper": os.getpid()}).encode()])

    def _stop(self, name: str | None) -> int:
        """How many there are. A worker that has just begun hears nothing: ask again."""
        self.alive()
        stopped = [one for one in self.mounts if name in (None, one)]
        for one in stopped:
            self.stopped.add(one)
            self.mounts[one].signal(signal.SIGTERM)
        return len(stopped)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Of the file that is there: another one may get the same inode number. None: there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


@dataclass(slots=True)
class Inheritance:
    """What a supervisor gets of the one before. `release` it when somebody else keeps it."""

    mounts: list[KeptMount]
    _connection: socket.socket
    _keeper: int

    def release(self) -> None:
        """Let the keeper end. Blocks a moment."""
        with suppress(OSError), self._connection:
            self._connection.sendall(json.dumps({"release": True}).encode())
        with suppress(ChildProcessError):  # it is our own child where we were started anew
            os.waitpid(self._keeper, 0)


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    """Raises: OSError where there is no keeper."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(ANSWER_S)
        with socket_address(path) as address:
            connection.connect(address)
        yield connection
    except BaseException:
        connection.close()
        raise


def inherit(path: Path) -> Inheritance | None:
    """What a keeper at `path` has; None where there is none. Blocks."""
    mounts: list[KeptMount] = []
    try:
        with _connected(path) as connection:
            connection.sendall(json.dumps({"give": True}).encode())
            while True:
                message, received = receive(connection)
                if message is None:
                    raise ConnectionResetError
                if "end" in message:
                    return Inheritance(mounts, connection, message["keeper"])
                if received:
                    mounts.append(KeptMount(message, received[0]))
    except OSError as error:
        if not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            log.warning("the mounts of the daemon before are lost: %s", error)
        for kept in mounts:
            os.close(kept.descriptor)
        return None


def stop_kept(path: Path, name: str | None = None) -> int:
    """Have the workers of a daemon that is gone unmount and end, all or that of `name`. How many
    are still there: ask again until there is none. Blocks."""
    try:
        with _connected(path) as connection:
            connection.sendall(json.dumps({"stop": name}).encode())
            message, _received = receive(connection)
            connection.close()
    except OSError:
        return 0
    return int(message["told"]) if message is not None else 0
