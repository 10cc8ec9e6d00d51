"""The supervisor's end of the socket pair between it and one worker.

Requests go to the worker, answered as on the control socket; the worker's events (``mounted``,
``failed``, ``heartbeat`` …) come back on the same lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from artifactfs.daemon.control import LineStream, Progress
from artifactfs.daemon.messages import Message, error_from_fields
from artifactfs.errors import ArtifactFSError, DaemonError

OnEvent = Callable[[Message], Awaitable[None]]


@dataclass(slots=True)
class _Pending:
    progress: Progress | None
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: ArtifactFSError | None = None


class WorkerChannel:
    """Requests to a worker and events from it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._lines = LineStream(stream)
        self._pending: dict[int, _Pending] = {}
        self._numbers = itertools.count(1)
        self.closed = trio.Event()

    async def run(self, on_event: OnEvent) -> None:
        """Dispatch what the worker sends until it closes its end."""
        try:
            while (message := await self._lines.receive()) is not None:
                if "event" in message:
                    await on_event(message)
                else:
                    await self._dispatch(message)
        except DaemonError:
            return
        finally:
            self.closed.set()
            for pending in self._pending.values():
                pending.error = _gone()
                pending.done.set()
            with trio.CancelScope(shield=True):
                await self._lines.aclose()

    async def _dispatch(self, message: Message) -> None:
        pending = self._pending.get(message.get("id", 0))
        if pending is None:
            return
        if "progress" in message:
            if pending.progress is not None and message["progress"]:
                await pending.progress(**message["progress"])
            return
        if "error" in message:
            pending.error = error_from_fields(message["error"])
        pending.result = message.get("result")
        pending.done.set()

    async def request(
        self,
        command: str,
        args: Message | None = None,
        *,
        deadline_s: float,
        progress: Progress | None = None,
    ) -> Any:
        """Ask the worker. Raises: its ArtifactFSError; DaemonError when it is gone or too slow."""
        if self.closed.is_set():
            raise _gone()
        number = next(self._numbers)
        pending = self._pending[number] = _Pending(progress)
        try:
            with trio.fail_after(deadline_s):
                await self._lines.send({"id": number, "command": command, "args": args or {}})
                await pending.done.wait()
        except trio.TooSlowError as error:
            raise DaemonError(
                f"the mount's process did not answer {command!r} within {deadline_s:.0f} s"
            ) from error
        finally:
            del self._pending[number]
        if pending.error is not None:
            raise pending.error
        return pending.result


def _gone() -> DaemonError:
    return DaemonError("the mount's process ended", hint="see artifact-fs status and the log")
