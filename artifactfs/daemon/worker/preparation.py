"""Making the gitdir behind an entrance: while it is made, who looks into the mount waits.

For what nobody waits for at a command line: ``add-repo --async``, and what is registered without a
gitdir when the daemon starts. An attempt that fails is told, the entrance refuses, and the next
attempt follows by itself, later each time, or as soon as somebody asks for it: then the entrance
lets people wait again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.messages import Message
from artifactfs.daemon.control.server import Request, innermost
from artifactfs.fs.kernel.handover import Handover
from artifactfs.fs.mount.entrance import Entrance
from artifactfs.fs.mount.session import hold
from artifactfs.git.remote.clone import Tip

log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0


class Waiting(Protocol):
    """What people wait behind: an `Entrance`, or a `Gate`."""

    def refuse(self) -> None: ...
    def wait_again(self) -> None: ...


@asynccontextmanager
async def held(
    entrance: Entrance, settings: RepoSettings, *, keep_awake: bool, handover: Handover
) -> AsyncIterator[None]:
    """The entrance is mounted while this lasts; it ends when somebody unmounts it.

    Raises: MountError.
    """

    async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await hold(
            entrance, settings, keep_awake=keep_awake, handover=handover, task_status=task_status
        )
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        yield
        nursery.cancel_scope.cancel()


class Preparation:
    """The attempts at one gitdir. `attempt` makes it, `report` tells the supervisor of a failure,
    `use` takes over the settings of who asks again."""

    def __init__(
        self,
        entrance: Waiting,
        attempt: Callable[[], Awaitable[Tip | None]],
        report: Callable[[Exception], Awaitable[None]],
        use: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._entrance = entrance
        self._attempt = attempt
        self._report = report
        self._use = use
        self._asked = trio.Event()
        self._asking = 0
        """Requests to try again whose settings are being taken over."""

    async def run(self) -> Tip | None:
        """Until an attempt succeeds."""
        delay = FIRST_RETRY_S
        passed_over = False
        while True:
            try:
                return await self._attempt()
            except Exception as error:
                # Who asked during this attempt waits for the next one. But somebody may always ask.
                passed_over = not passed_over and (self._asked.is_set() or self._asking > 0)
                if passed_over:
                    log.warning("an attempt failed: %s", innermost(error))
                else:
                    self._entrance.refuse()
                    await self._report(innermost(error))
            with trio.move_on_after(delay):
                await self._asked.wait()
            delay = min(2 * delay, LONGEST_RETRY_S)
            if self._asked.is_set():
                self._asked = trio.Event()
                delay = FIRST_RETRY_S

    async def retry(self, request: Request) -> Message:
        """Try again at once, with the ``settings`` of the request; who comes waits for that."""
        self._asking += 1
        try:
            await self._use(request.args["settings"])
        finally:
            self._asking -= 1
        self._entrance.wait_again()
        self._asked.set()
        return {}
