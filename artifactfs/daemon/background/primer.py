"""The process that writes the index of a new mount (`git/index/primer.py`), as the worker has it.

It is forked from the worker before that has an event loop, a thread or a mount: so it has loaded
everything. A new interpreter takes a tenth of a second for that, of a CPU that programs want just
then, and cannot begin before it. Where there is none, it is started like any other program.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import trio

from artifactfs.daemon.background.tasks import run_quietly
from artifactfs.errors import ArtifactFSError
from artifactfs.git.index.primer import serve

Message = dict[str, Any]

DEADLINE_S = 300.0
END_S = 3.0
_PIECE = 1 << 16


@dataclass(slots=True)
class ForkedPrimer:
    """A process that waits for what it is to list. It ends when `connection` is closed."""

    pid: int
    connection: socket.socket

    @classmethod
    def fork(cls) -> Self | None:
        """Only where this process has a single thread. None where there is no room for it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                return None
            if pid == 0:
                _become_primer(theirs.fileno())
        return cls(pid, ours)


def _become_primer(descriptor: int) -> None:
    """In the child: never returns."""
    status = 70  # EX_SOFTWARE
    try:
        os.closerange(3, descriptor)
        os.closerange(descriptor + 1, 1 << 30)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.disable()  # what it makes, it needs to its end
        with open(descriptor, "rb") as requests, open(descriptor, "wb", closefd=False) as answers:
            serve(requests, answers)
        status = 0
    except SystemExit:
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(status)


class Primer:
    """Writes the index of one mount, by `forked` where there is such a process."""

    def __init__(self, forked: ForkedPrimer | None) -> None:
        self._forked = forked
        self._stream: trio.SocketStream | None = None
        self._options: Message = {}

    async def begin(self, options: Message) -> None:
        """List the tree: `options` are those of `primer.encode_options`."""
        self._options = options
        if self._forked is None:
            return
        self._forked.connection.setblocking(False)
        connection = trio.socket.from_stdlib_socket(self._forked.connection)
        self._stream = trio.SocketStream(connection)
        with suppress(trio.BrokenResourceError):  # it has died: said when it is asked
            await self._stream.send_all(_line(options))

    async def write(self, *, need_attributes: bool) -> Message:
        """Write it; what it answers. Raises: ArtifactFSError."""
        request: Message = {"need_attributes": need_attributes}
        answer = await self._ask(request) if self._stream is not None else None
        if answer is None:
            command = [sys.executable, "-I", "-m", "artifactfs.git.index.primer"]
            lines = _line(self._options) + _line(request)
            answer = await run_quietly(command, stdin=lines, deadline_s=DEADLINE_S)
        written: Message = json.loads(answer)
        if "error" in written:
            raise ArtifactFSError(written["error"])
        return written

    async def _ask(self, request: Message) -> bytes | None:
        """None where it has died: then another process tries."""
        assert self._stream is not None
        answer = b""
        with trio.move_on_after(DEADLINE_S):
            try:
                await self._stream.send_all(_line(request))
                while piece := await self._stream.receive_some(_PIECE):
                    answer += piece
                    if piece.endswith(b"\n"):
                        return answer
            except trio.BrokenResourceError:
                pass
        await self.aclose()
        return None

    async def aclose(self) -> None:
        """End the process."""
        forked, self._forked = self._forked, None
        stream, self._stream = self._stream, None
        if forked is None:
            return
        forked.connection.close()
        with trio.CancelScope(shield=True):
            if stream is not None:
                await trio.aclose_forcefully(stream)
            await trio.to_thread.run_sync(_see_out, forked.pid)


def _see_out(pid: int) -> None:
    """End a child, which takes its lock on the index with it; kill it after `END_S`."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        if not select.select([pidfd], [], [], END_S)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
