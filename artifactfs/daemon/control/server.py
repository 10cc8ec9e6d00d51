"""The serving side of the control protocol, and line streams for both sides of a worker channel.

`ControlServer` listens on ``STATE/control.sock`` (0600, only the owner and root are served). Every
request runs in a task of its connection: many requests run at once, and a client that goes away
cancels what it asked for.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from artifactfs.daemon.control.messages import (
    KEEPALIVE_S,
    MAX_LINE,
    Message,
    decode,
    encode,
    error_fields,
    peer_uid,
    socket_address,
)
from artifactfs.errors import ArtifactFSError, DaemonError, InvalidInput, StateError

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 10.0


class LineStream:
    """Messages over a byte stream. `receive` belongs to one task; `send` may be shared."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._sending = trio.Lock()
        self._torn = False  # a message was sent in part: what follows could not be read

    async def receive(self) -> Message | None:
        """The next message, None at the end. Raises: DaemonError for what is no message."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE:
                raise DaemonError("a message is too long")
            try:
                chunk = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not chunk:
                return None
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return decode(line)
        except ValueError as error:
            raise DaemonError("a line is not a message of the protocol") from error

    async def send(self, message: Message) -> None:
        """Raises: DaemonError when the other side is gone or does not read.

        A message that was begun is sent to its end, also when this is cancelled: others follow it.
        """
        data = encode(message)
        try:
            async with self._sending:
                await trio.lowlevel.checkpoint()
                if self._torn:
                    raise trio.ClosedResourceError
                self._torn = True
                with trio.fail_after(SEND_TIMEOUT_S, shield=True):
                    await self._stream.send_all(data)
                self._torn = False
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise DaemonError("the other side of the control connection is gone") from error

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class Request:
    """One command as its handler sees it."""

    __slots__ = ("_lines", "_number", "args")

    def __init__(self, args: Message, number: object, lines: LineStream) -> None:
        self.args = args
        self._number = number
        self._lines = lines

    async def progress(self, **fields: object) -> None:
        """Tell the client how far it is."""
        await self._lines.send({"id": self._number, "progress": fields})

    def about(self, **args: object) -> Request:
        """A request of the same client with other arguments."""
        return Request(args, self._number, self._lines)

    def text(self, key: str) -> str:
        """The string argument `key`. Raises: InvalidInput."""
        value = self.args.get(key)
        if not isinstance(value, str):
            raise InvalidInput(f"argument {key!r} is missing")
        return value


Handler = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Command:
    """A handler and how long it may take (seconds).

    `cancellable`: who asked may take it back with ``{"cancel": ID}``; there is no answer then.
    """

    handler: Handler
    deadline_s: float
    cancellable: bool = False


class Progress(Protocol):
    async def __call__(self, **fields: object) -> None: ...


async def serve_requests(lines: LineStream, commands: Mapping[str, Command]) -> None:
    """Answer requests from `lines` until its end, then cancel those still running."""
    scopes: dict[int, trio.CancelScope] = {}
    async with trio.open_nursery() as nursery:
        while (message := await lines.receive()) is not None:
            if "cancel" in message:
                _cancel(scopes, message["cancel"])
            else:
                nursery.start_soon(_answer_cancellably, lines, message, commands, scopes)
        nursery.cancel_scope.cancel()


def _cancel(scopes: Mapping[int, trio.CancelScope], number: object) -> None:
    scope = scopes.get(number) if isinstance(number, int) else None
    if scope is not None:
        scope.cancel()


async def _answer_cancellably(
    lines: LineStream,
    message: Message,
    commands: Mapping[str, Command],
    scopes: dict[int, trio.CancelScope],
) -> None:
    number, name = message.get("id"), message.get("command")
    command = commands.get(name) if isinstance(name, str) else None
    if command is None or not command.cancellable or not isinstance(number, int):
        await _answer(lines, message, commands)
        return
    with trio.CancelScope() as scope:
        scopes[number] = scope
        try:
            await _answer(lines, message, commands)
        finally:
            del scopes[number]


async def _answer(lines: LineStream, message: Message, commands: Mapping[str, Command]) -> None:
    number = message.get("id")
    try:
        reply: Message = {"id": number, "result": await _run(lines, message, commands)}
    except ArtifactFSError as error:
        reply = {"id": number, "error": error_fields(error)}
    except Exception as error:
        command = str(message.get("command"))
        log.error("command failed", exc_info=error, extra={"command": command})
        failure = DaemonError(f"internal error: {type(error).__name__}", hint="see the log")
        reply = {"id": number, "error": error_fields(failure)}
    try:
        await lines.send(reply)
    except DaemonError:
        log.debug("nobody waits for the answer any more")


async def _run(lines: LineStream, message: Message, commands: Mapping[str, Command]) -> Any:
    name = message.get("command")
    command = commands.get(name) if isinstance(name, str) else None
    args = message.get("args", {})
    if command is None or not isinstance(args, dict):
        raise InvalidInput(
            f"the daemon does not know the command {name!r}",
            hint="it may be of another version: restart it",
        )
    request = Request(args, message.get("id"), lines)
    outcome: Any = None
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keepalive, request)
        try:
            with trio.fail_after(command.deadline_s):
                outcome = await command.handler(request)
        except trio.TooSlowError:
            failure = DaemonError(
                f"{name} took longer than {command.deadline_s:.0f} s", hint="see the daemon's log"
            )
        except Exception as error:
            failure = innermost(error)
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return outcome


def innermost(error: Exception) -> Exception:
    """What a nursery wrapped, where it wrapped exactly one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _keepalive(request: Request) -> None:
    while True:
        await trio.sleep(KEEPALIVE_S)
        try:
            await request.progress()
        except DaemonError:
            return


class ControlServer:
    """Listens on a Unix socket for the command line."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self.connections = 0
        self.last_served = float("-inf")  # seconds, trio's clock

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once the socket accepts. The caller holds the lock of
        the state root, so a socket that is there already is a leftover."""
        listener = trio.SocketListener(self._listen())
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, self._serve, [listener])
                task_status.started()
        finally:
            self._path.unlink(missing_ok=True)

    def _listen(self) -> trio.socket.SocketType:
        """Raises: StateError."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(
                f"{self._path} is in the way: {error.strerror}",
                hint=f"move it away: mv {shlex.quote(str(self._path))}{{,.old}}",
            ) from error
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        previous = os.umask(0o177)
        try:
            with socket_address(self._path) as address:
                raw.bind(address)
        finally:
            os.umask(previous)
        raw.listen(128)
        raw.setblocking(False)
        return trio.socket.from_stdlib_socket(raw)

    async def _serve(self, stream: trio.SocketStream) -> None:
        uid = peer_uid(stream)
        if uid not in (0, os.geteuid()):
            log.warning("refused a control connection", extra={"uid": uid})
            return
        self.connections += 1
        try:
            await serve_requests(LineStream(stream), self._commands)
        except* DaemonError as group:
            log.warning("dropped a control connection: %s", group.exceptions[0])
        except* Exception as group:  # a mistake of ours about one must not end the others' mounts
            log.error("a control connection failed", exc_info=group)
        finally:
            self.connections -= 1
            self.last_served = trio.current_time()
