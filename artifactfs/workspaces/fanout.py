"""`fanout`: one baseline, many tasks; each with a fork, a token and a workspace of its own.

The workspaces share the contents that were fetched. One task that fails touches no other.
"""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import anyio

from artifactfs.errors import InvalidInput
from artifactfs.workspaces.asynchronous import AsyncWorkspace, in_thread
from artifactfs.workspaces.opening import HasRemote, OpenWorkspace, workspace
from artifactfs.workspaces.results import CommandFailed, Usage
from artifactfs.workspaces.running import Stopper, stopped_by
from artifactfs.workspaces.workspace import COMMAND_S, Workspace

CONCURRENCY = 8
SIGNAL_S = 0.2
"""Ctrl-C is noticed so much later at most: in a wait without an end a signal can be missed."""


class Baseline(Protocol):
    """A repository of `artifactfs.client`: it can be forked."""

    @property
    def name(self) -> str: ...
    @property
    def fork(self) -> Callable[..., Any]: ...


Task = Callable[[Workspace, int], object]
AsyncTask = Callable[[AsyncWorkspace, int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one task.

    `fork` is the name of its repository (None where the baseline was a URL), `branch` and `commit`
    (hex) where its work is, `diff` all that it has done. `exit_code` is that of the last command
    that ran in it. `value` is what the task returned, `error` why it failed; then its workspace is
    kept under `name`. `mounted_s` is how long it took until the tree could be read.
    """

    number: int
    name: str
    fork: str | None = None
    branch: str | None = None
    commit: str | None = None
    diff: str = field(default="", repr=False)
    exit_code: int | None = None
    value: object = None
    error: Exception | None = None
    mounted_s: float = 0.0
    seconds: float = 0.0
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))

    @property
    def ok(self) -> bool:
        return self.error is None and not self.exit_code

    @property
    def changed(self) -> bool:
        return bool(self.diff)


class Results(Sequence[Result]):
    """The results in the order of the tasks; printed, they are a table."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = tuple(results)

    def __getitem__(self, index: Any) -> Any:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    @property
    def passed(self) -> tuple[Result, ...]:
        """Those without an error, whose last command has succeeded."""
        return tuple(result for result in self._results if result.ok)

    def __str__(self) -> str:
        columns = ("exit", 4), ("mounted", 8), ("seconds", 8), ("memory", 8), ("disk", 8)
        head = f"{'task':<28} " + " ".join(f"{name:>{width}}" for name, width in columns)
        return "\n".join([f"{head}  diff", *map(_row, self._results)])


def _row(result: Result) -> str:
    code = "-" if result.exit_code is None else str(result.exit_code)
    lines = result.diff.splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    said = f"+{added} -{removed}" if result.error is None else str(result.error)[:60]
    memory, disk = (n / (1 << 20) for n in (result.usage.memory_bytes, result.usage.disk_bytes))
    return (
        f"{result.name:<28} {code:>4} {result.mounted_s:7.2f}s {result.seconds:7.2f}s "
        f"{memory:5.1f} MB {disk:5.1f} MB  {said}"
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all tasks have in common."""

    baseline: Baseline | str
    run_name: str
    commit: str | None
    options: dict[str, Any]

    def name(self, number: int) -> str:
        base = "task" if isinstance(self.baseline, str) else self.baseline.name
        return f"{base}-{self.run_name}-{number:02d}"

    def open(self, name: str, made: HasRemote | None) -> OpenWorkspace:
        options = dict(self.options)
        if made is None:
            options.setdefault("branch", name)
        remote = self.baseline if made is None else made
        return workspace(remote, name=name, **options)  # type: ignore[arg-type]

    def gather(self, ws: Workspace, result: Result) -> Result:
        """Commit and push what there is, while it is mounted. Raises: ArtifactFSError."""
        if self.commit is not None:
            ws.commit(self.commit)
        diff = ws.diff()
        unsaved = ws.unsaved()
        if unsaved.commits and self.options["on_exit"] == "push":
            ws.push(ws.branch or f"artifact-fs/{ws.name}")
        code = ws.last_run.exit_code if ws.last_run is not None else None
        return replace(
            result,
            branch=ws.branch,
            commit=ws.head,
            diff=diff,
            exit_code=code,
            usage=ws.usage(),
        )


def _plan(
    baseline: Baseline | str, n: int, concurrency: int, commit: str | None, options: dict[str, Any]
) -> _Plan:
    if n < 1 or concurrency < 1:
        raise InvalidInput("n and concurrency are at least 1")
    defaults = {"on_exit": "push", "depth": 1, "hydrate": "none"}
    return _Plan(baseline, secrets.token_hex(3), commit, {**defaults, **options})


def fanout(
    baseline: Baseline | str,
    task: Task | str,
    n: int = 20,
    *,
    concurrency: int = CONCURRENCY,
    commit: str | None = None,
    timeout_s: float = COMMAND_S,
    **options: Any,
) -> Results:
    """Do `task` `n` times, each in a workspace of a fork of its own; at most `concurrency` at once.

    `baseline`: a repository of `artifactfs.client.Artifacts`, of which each task gets a fork and
    the fork's token; or the URL of any repository, in which each gets a branch. `task` is called
    with the workspace and the number of the task, from 0; or it is a command for the shell
    (``$TASK`` is the number), which has `timeout_s`. `commit`: commit what a task has left, with
    this message. Commits are pushed unless a task raises an error.

    More `options` are those of `artifactfs.workspace`; here they are by default
    ``on_exit="push"``, ``depth=1`` and ``hydrate="none"``. An error of a task is in its `Result`,
    and its work is kept. Blocks. Ctrl-C ends what runs; the work is kept. Raises: InvalidInput.
    """
    plan = _plan(baseline, n, concurrency, commit, options)
    work = _command_task(task, timeout_s) if isinstance(task, str) else task
    stopper = Stopper()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="fanout") as pool:
        futures = [pool.submit(_one, plan, work, number, stopper) for number in range(n)]
        try:
            for future in futures:
                while not wait((future,), timeout=SIGNAL_S).done:
                    pass
            return Results([future.result() for future in futures])
        except BaseException:
            stopper.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(plan: _Plan, task: Task, number: int, stopper: Stopper) -> Result:
    began = time.monotonic()
    result = Result(number, plan.name(number))
    try:
        with stopped_by(stopper):
            made = None
            if not isinstance(plan.baseline, str):
                made = plan.baseline.fork(result.name)
                result = replace(result, fork=result.name)
            with plan.open(result.name, made) as ws:
                result = replace(result, mounted_s=time.monotonic() - began)
                result = replace(result, value=task(ws, number))
                result = plan.gather(ws, result)
    except Exception as error:
        result = replace(result, error=error, exit_code=_code(error))
    return replace(result, seconds=time.monotonic() - began)


def _command_task(command: str, timeout_s: float) -> Task:
    def task(ws: Workspace, number: int) -> None:
        environment = {"TASK": str(number)}
        ws.run(command, timeout_s=timeout_s, show=False, env=environment, check=True)

    return task


def _code(error: Exception) -> int | None:
    return error.run.exit_code if isinstance(error, CommandFailed) else None


async def async_fanout(
    baseline: Baseline | str,
    task: AsyncTask,
    n: int = 20,
    *,
    concurrency: int = CONCURRENCY,
    commit: str | None = None,
    **options: Any,
) -> Results:
    """See `fanout`; for trio and asyncio. `baseline` may be of `AsyncArtifacts`. Cancelling ends
    what runs; the work is kept."""
    plan = _plan(baseline, n, concurrency, commit, options)
    results: dict[int, Result] = {}
    limit = anyio.CapacityLimiter(concurrency)

    async def one(number: int) -> None:
        async with limit:
            results[number] = await _one_async(plan, task, number)

    async with anyio.create_task_group() as group:
        for number in range(n):
            group.start_soon(one, number)
    return Results([results[number] for number in range(n)])


async def _one_async(plan: _Plan, task: AsyncTask, number: int) -> Result:
    began = time.monotonic()
    result = Result(number, plan.name(number))
    try:
        made = await _forked(plan.baseline, result.name)
        result = replace(result, fork=result.name if made is not None else None)
        async with plan.open(result.name, made) as ws:
            result = replace(result, mounted_s=time.monotonic() - began)
            result = replace(result, value=await task(ws, number))
            result = await in_thread(partial(plan.gather, ws.blocking, result))
    except Exception as error:
        result = replace(result, error=error, exit_code=_code(error))
    return replace(result, seconds=time.monotonic() - began)


async def _forked(baseline: Baseline | str, name: str) -> HasRemote | None:
    if isinstance(baseline, str):
        return None
    if inspect.iscoroutinefunction(baseline.fork):
        made: HasRemote = await baseline.fork(name)
        return made
    return await in_thread(partial(baseline.fork, name))
