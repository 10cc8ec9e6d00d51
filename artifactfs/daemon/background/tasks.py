"""Runs the tasks behind a mount that can be read already: what fails is tried again.

Every job runs in a task of its own and may fail without touching the mount: it is logged, and
tried again with a growing delay. The order follows from what waits for what: the primed index
needs sizes, and git in the mount waits for the index; history comes beside it; the sweep is last.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from artifactfs.errors import ArtifactFSError, DaemonError
from artifactfs.git.identity import other_user_of
from artifactfs.system.running import run_group

log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 300.0

Job = Callable[[], Awaitable[None]]


async def keep_trying(name: str, job: Job, *, repo: str) -> None:
    """Run `job` until it succeeds. Its errors are logged, with the time of the next attempt."""
    delay = FIRST_RETRY_S
    while True:
        try:
            await job()
        except ArtifactFSError as error:
            fields = {"repo": repo, "job": name, "error": type(error).__name__, "retry_s": delay}
            log.warning("%s failed: %s", name, error.message, extra=fields)
        except Exception as error:
            fields = {"repo": repo, "job": name, "retry_s": delay}
            log.error("%s failed", name, exc_info=error, extra=fields)
        else:
            return
        await trio.sleep(delay)
        delay = min(delay * 2, LONGEST_RETRY_S)


class Background:
    """The tasks of one mount that nobody waits for. They end with `run`."""

    def __init__(self, repo: str) -> None:
        self._repo = repo
        self._nursery: trio.Nursery
        self._running = False

    async def run(
        self,
        *services: Job,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run `services`, and what is given to `start` and `keep` meanwhile, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for service in services:
                nursery.start_soon(service)
            self._running = True
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._running = False

    def start(self, job: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run `job` beside the others. Its failure is logged, and touches nothing else.

        Raises: DaemonError where the mount is ending.
        """
        if not self._running:
            raise DaemonError("the mount is ending")
        self._nursery.start_soon(self._alone, job, arguments)

    async def _alone(
        self, job: Callable[..., Awaitable[object]], arguments: tuple[object, ...]
    ) -> None:
        try:
            await job(*arguments)
        except Exception as error:
            log.error("%s failed", job.__name__.strip("_"), exc_info=error)

    def keep(self, name: str, job: Job) -> None:
        """Run `job` until it has succeeded."""
        self._nursery.start_soon(partial(keep_trying, name, job, repo=self._repo))


class Refresh:
    """Runs a job at an interval that can be changed while it waits."""

    def __init__(self, interval_s: float | None, job: Job, *, repo: str) -> None:
        self._interval_s = interval_s
        self._job = job
        self._repo = repo
        self._changed = trio.Event()

    def set_interval(self, interval_s: float | None) -> None:
        self._interval_s = interval_s
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        while True:
            changed = self._changed
            wait_s = self._interval_s if self._interval_s is not None else float("inf")
            with trio.move_on_after(wait_s):
                await changed.wait()
                continue
            try:
                await self._job()
            except ArtifactFSError as error:
                log.warning("refresh failed: %s", error.message, extra={"repo": self._repo})
            except Exception as error:
                log.error("refresh failed", exc_info=error, extra={"repo": self._repo})


async def run_quietly(command: list[str], *, deadline_s: float, stdin: bytes = b"") -> bytes:
    """Run a program of ours; returns what it printed. Cancelling ends it.

    Raises: ArtifactFSError with its last words.
    """
    with trio.move_on_after(deadline_s) as scope:
        done = await run_group(
            command,
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            **(user.process_options() if (user := other_user_of(None)) is not None else {}),
        )
    if scope.cancelled_caught:
        raise ArtifactFSError(f"{command[2]} did not end within {deadline_s:.0f} s")
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines() or [""]
        raise ArtifactFSError(f"{command[2]} failed ({done.returncode}): {words[-1]}")
    return done.stdout
