"""The supervisor's end of the socket pair between it and one worker.

Requests go to the worker, answered as on the control socket; the worker's events (``mounted``,
``failed``, ``heartbeat`` …) come back on the same lines.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from artifactfs.daemon.control.messages import Message, error_from_fields
from artifactfs.daemon.control.server import LineStream, Progress
from artifactfs.errors import ArtifactFSError, DaemonError

log = logging.getLogger(__name__)

OnEvent = Callable[[Message], Awaitable[None]]


KEPT_PROGRESS = 16
"""Reports of a request that wait to be passed on; of more, the oldest are dropped."""


@dataclass(slots=True)
class _Pending:
    reports: deque[Message] = field(default_factory=lambda: deque(maxlen=KEPT_PROGRESS))
    changed: trio.Event = field(default_factory=trio.Event)  # replaced at each message
    done: bool = False
    result: Any = None
    error: ArtifactFSError | None = None

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def finish(self, result: Any, error: ArtifactFSError | None) -> None:
        self.done, self.result, self.error = True, result, error
        self.wake()


class WorkerChannel:
    """Requests to a worker and events from it.

    What a worker says is never kept up by who asked: each passes its progress on in its own task,
    so a client that stalls or is gone holds up its own request alone. A request that is given up
    (cancelled, or too slow) is cancelled in the worker.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._lines = LineStream(stream)
        self._pending: dict[int, _Pending] = {}
        self._numbers = itertools.count(1)
        self._give_up, self._given_up = trio.open_memory_channel[int](math.inf)
        self.closed = trio.Event()

    async def run(self, on_event: OnEvent) -> None:
        """Dispatch what the worker sends until it closes its end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_what_is_given_up)
                await self._dispatch_all(on_event)
                nursery.cancel_scope.cancel()
        finally:
            self.closed.set()
            for pending in self._pending.values():
                pending.finish(None, _gone())
            with trio.CancelScope(shield=True):
                await self._lines.aclose()

    async def _dispatch_all(self, on_event: OnEvent) -> None:
        try:
            while (message := await self._lines.receive()) is not None:
                if "event" in message:
                    await on_event(message)
                else:
                    self._dispatch(message)
        except DaemonError as error:
            log.error("a worker's messages: %s", error.message)

    async def _tell_what_is_given_up(self) -> None:
        async for number in self._given_up:
            with suppress(DaemonError):  # it ends, then
                await self._lines.send({"cancel": number})

    def _dispatch(self, message: Message) -> None:
        pending = self._pending.get(message.get("id", 0))
        if pending is None:
            return
        if "progress" in message:
            if message["progress"]:
                pending.reports.append(message["progress"])
                pending.wake()
            return
        error = error_from_fields(message["error"]) if "error" in message else None
        pending.finish(message.get("result"), error)

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
        pending = self._pending[number] = _Pending()
        try:
            with trio.fail_after(deadline_s):
                await self._lines.send({"id": number, "command": command, "args": args or {}})
                await _finished(pending, progress)
        except trio.TooSlowError as error:
            raise DaemonError(
                f"the mount's process did not answer {command!r} within {deadline_s:.0f} s"
            ) from error
        finally:
            del self._pending[number]
            if not pending.done:
                self._give_up.send_nowait(number)
        if pending.error is not None:
            raise pending.error
        return pending.result


async def _finished(pending: _Pending, progress: Progress | None) -> None:
    """Until it is answered; passes on its progress. Raises: DaemonError from `progress`."""
    while not pending.done:
        changed = pending.changed
        while pending.reports:
            report = pending.reports.popleft()
            if progress is not None:
                await progress(**report)
        if not pending.done:
            await changed.wait()


def _gone() -> DaemonError:
    return DaemonError("the mount's process ended", hint="see artifact-fs status and the log")
