"""`AsyncWorkspace`: the same for programs that run under trio or asyncio.

Each call is the blocking one in a thread. A task that is cancelled stops it: its command is killed,
its request withdrawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from artifactfs.workspaces.results import Change, Match, Pushed, Run, Snapshot, Unsaved, Usage
from artifactfs.workspaces.running import Command, Output, Stopper, stopped_by
from artifactfs.workspaces.workspace import COMMAND_S, Workspace

T = TypeVar("T")


@dataclass(slots=True)
class _Outcome(Generic[T]):
    value: T | None = None
    error: BaseException | None = None


async def in_thread(call: Callable[[], T], *, undo: Callable[[T], None] | None = None) -> T:
    """What `call` returns. Cancelling stops what it waits for; where it has succeeded all the same,
    `undo` gets what it returned."""
    stopper, outcome = Stopper(), _Outcome[T]()

    def run() -> None:
        try:
            with stopped_by(stopper):
                outcome.value = call()
        except BaseException as error:
            outcome.error = error

    async with anyio.create_task_group() as group:
        group.start_soon(_stop_when_cancelled, stopper)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(run, limiter=_unlimited())
        group.cancel_scope.cancel()
    return await _result(outcome, undo)


async def _result(outcome: _Outcome[T], undo: Callable[[T], None] | None) -> T:
    """Raises: the error of the call, or the cancellation."""
    try:
        await anyio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        if outcome.error is None and undo is not None:
            await to_the_end(partial(undo, outcome.value))  # type: ignore[arg-type]
        raise
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]


async def left_behind(call: Callable[[], T]) -> T:
    """What `call` returns. A task that is cancelled does not wait for it: it changes nothing."""
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=_unlimited())


async def to_the_end(call: Callable[[], T]) -> T:
    """Likewise, and nothing cuts it short: every wait in it has a deadline."""
    outcome = _Outcome[T]()
    with anyio.CancelScope(shield=True):
        outcome.value = await anyio.to_thread.run_sync(call, limiter=_unlimited())
    return outcome.value  # type: ignore[return-value]


async def _stop_when_cancelled(stopper: Stopper) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        stopper.stop()


def _unlimited() -> anyio.CapacityLimiter:
    """Commands may wait for each other: as many threads as there are calls."""
    return anyio.CapacityLimiter(1)


class AsyncWorkspace:
    """A mounted working tree. Made by `artifactfs.workspace`; see `Workspace`, of which it has
    every method, with ``await``. Each may be cancelled."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def __repr__(self) -> str:
        return f"AsyncWorkspace(name={self.name!r}, path={str(self.path)!r})"

    @property
    def blocking(self) -> Workspace:
        """The same for code that blocks, in a thread."""
        return self._workspace

    @property
    def name(self) -> str:
        return self._workspace.name

    @property
    def path(self) -> Path:
        return self._workspace.path

    @property
    def base(self) -> str | None:
        """The commit (hex) that it began with."""
        return self._workspace.base

    @property
    def last_run(self) -> Run | None:
        return self._workspace.last_run

    async def run(
        self,
        command: Command,
        *,
        timeout_s: float | None = COMMAND_S,
        check: bool = False,
        show: bool = True,
        on_output: Output | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = ".",
        given: str | None = None,
    ) -> Run:
        """See `Workspace.run`; `on_output` is called in another thread."""
        return await in_thread(
            partial(
                self._workspace.run,
                command,
                timeout_s=timeout_s,
                check=check,
                show=show,
                on_output=on_output,
                env=env,
                cwd=cwd,
                given=given,
            )
        )

    async def read(self, path: str) -> str:
        """See `Workspace.read`."""
        return await left_behind(partial(self._workspace.read, path))

    async def read_bytes(self, path: str) -> bytes:
        """See `Workspace.read_bytes`."""
        return await left_behind(partial(self._workspace.read_bytes, path))

    async def write(self, path: str, content: str | bytes, *, executable: bool = False) -> None:
        """See `Workspace.write`."""
        await in_thread(partial(self._workspace.write, path, content, executable=executable))

    async def list(self, path: str = ".") -> tuple[str, ...]:
        """See `Workspace.list`."""
        return await left_behind(partial(self._workspace.list, path))

    async def grep(
        self, pattern: str, *paths: str, fixed: bool = False, ignore_case: bool = False
    ) -> tuple[Match, ...]:
        """See `Workspace.grep`."""
        return await in_thread(
            partial(self._workspace.grep, pattern, *paths, fixed=fixed, ignore_case=ignore_case)
        )

    async def prefetch(self, *patterns: str) -> int:
        """See `Workspace.prefetch`."""
        return await in_thread(partial(self._workspace.prefetch, *patterns))

    async def changes(self) -> tuple[Change, ...]:
        """See `Workspace.changes`."""
        return await in_thread(self._workspace.changes)

    async def diff(self, *paths: str, base: str | None = None) -> str:
        """See `Workspace.diff`."""
        return await in_thread(partial(self._workspace.diff, *paths, base=base))

    async def unsaved(self) -> Unsaved:
        """See `Workspace.unsaved`."""
        return await in_thread(self._workspace.unsaved)

    async def usage(self) -> Usage:
        """See `Workspace.usage`."""
        return await in_thread(self._workspace.usage)

    async def git(self, *arguments: str, timeout_s: float = COMMAND_S) -> str:
        """See `Workspace.git`."""
        return await in_thread(partial(self._workspace.git, *arguments, timeout_s=timeout_s))

    async def branch(self) -> str | None:
        """See `Workspace.branch`."""
        return await in_thread(lambda: self._workspace.branch)

    async def head(self) -> str | None:
        """See `Workspace.head`."""
        return await in_thread(lambda: self._workspace.head)

    async def switch(self, branch: str) -> None:
        """See `Workspace.switch`."""
        await in_thread(partial(self._workspace.switch, branch))

    async def commit(self, message: str, *paths: str, hooks: bool = True) -> str | None:
        """See `Workspace.commit`."""
        return await in_thread(partial(self._workspace.commit, message, *paths, hooks=hooks))

    async def push(self, branch: str | None = None, *, force: bool = False) -> Pushed:
        """See `Workspace.push`."""
        return await in_thread(partial(self._workspace.push, branch, force=force))

    async def snapshot(
        self, name: str | None = None, *, message: str = "Snapshot", push: bool = False
    ) -> Snapshot:
        """See `Workspace.snapshot`."""
        return await in_thread(partial(self._workspace.snapshot, name, message=message, push=push))

    async def snapshots(self) -> tuple[Snapshot, ...]:
        """See `Workspace.snapshots`."""
        return await in_thread(self._workspace.snapshots)

    async def restore(self, snapshot: Snapshot | str) -> Snapshot:
        """See `Workspace.restore`."""
        return await in_thread(partial(self._workspace.restore, snapshot))

    async def push_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """See `Workspace.push_snapshot`."""
        return await in_thread(partial(self._workspace.push_snapshot, snapshot))
