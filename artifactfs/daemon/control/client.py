"""The command line's side of the control protocol: synchronous, standard library only."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from artifactfs.daemon.control.messages import (
    KEEPALIVE_S,
    Message,
    decode,
    encode,
    error_from_fields,
    socket_address,
)
from artifactfs.errors import DaemonError
from artifactfs.paths import StateLayout

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 6 * KEEPALIVE_S
"""The daemon reports every running request each `KEEPALIVE_S`: longer silence means it hangs."""

Progress = Callable[[Message], None]


class DaemonNotRunning(DaemonError):
    """Nothing listens on the control socket of this state root."""


class ControlClient:
    """A connection to the daemon of one state root."""

    def __init__(self, state: StateLayout) -> None:
        """Connect. Raises: DaemonNotRunning, DaemonError."""
        self._path = state.control_socket
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        try:
            with socket_address(self._path) as address:
                self._socket.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._socket.close()
            raise DaemonNotRunning(
                f"no daemon runs for {state.root}",
                hint="start one: artifact-fs daemon",
            ) from error
        except OSError as error:
            self._socket.close()
            raise DaemonError(
                f"cannot reach the daemon at {self._path}: {error.strerror or error}",
                hint="run as the user who started the daemon",
            ) from error
        self._socket.settimeout(SILENCE_TIMEOUT_S)
        self._lines = self._socket.makefile("rb")
        self._next_id = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def interrupt(self) -> None:
        """From another thread: what waits for an answer gets a DaemonError, and the daemon cancels
        the command."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def request(self, command: str, *, on_progress: Progress | None = None, **args: object) -> Any:
        """Run `command` in the daemon and return its result.

        Closing the connection meanwhile (Ctrl-C) cancels the command. Raises: ArtifactFSError,
        the one the daemon answered; DaemonError when it went away or is silent too long.
        """
        number = self._next_id
        self._next_id += 1
        try:
            self._socket.sendall(encode({"id": number, "command": command, "args": args}))
            while True:
                reply = self._receive()
                if reply.get("id") != number:
                    continue
                if "error" in reply:
                    raise error_from_fields(reply["error"])
                if "result" in reply:
                    return reply["result"]
                if on_progress is not None and reply.get("progress"):
                    on_progress(reply["progress"])
        except TimeoutError as error:
            raise DaemonError(
                f"the daemon did not answer for {SILENCE_TIMEOUT_S:.0f} s",
                hint="see its log; artifact-fs doctor names what is stuck",
            ) from error
        except OSError as error:
            raise DaemonError(f"the daemon went away: {error}") from error

    def _receive(self) -> Message:
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise DaemonError("the daemon ended before it answered", hint="see its log")
        try:
            return decode(line)
        except ValueError as error:
            raise DaemonError("the daemon answered something that is not its protocol") from error
