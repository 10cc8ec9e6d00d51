"""Workspaces for programs that run under trio or asyncio, and what cancelling leaves behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from artifactfs.errors import InvalidInput
from tests.e2e.mount_table import mounts_below
from tests.e2e.processes import DaemonProcess, wait_until
from tests.workspaces.conftest import Open, git

Main = Callable[[], Coroutine[Any, Any, None]]


def run_trio(main: Main) -> None:
    trio.run(main)


def run_asyncio(main: Main) -> None:
    asyncio.run(main())


both = pytest.mark.parametrize("run", [run_trio, run_asyncio])


@both
def test_the_same_calls(run: Callable[[Main], None], open_workspace: Open, remote: Path) -> None:
    async def main() -> None:
        async with open_workspace(branch="topic") as ws:
            assert await ws.read("README.md") == "# Hello\n"
            assert await ws.list("src") == ("main.c",)
            await ws.write("a", "a")
            done = await ws.run("cat a; exit 3", show=False)
            assert (done.exit_code, done.stdout) == (3, "a")
            assert [c.path for c in await ws.changes()] == ["a"]
            assert [m.path for m in await ws.grep("int main")] == ["src/main.c"]
            taken = await ws.snapshot()
            assert await ws.commit("A") == await ws.head()
            assert await ws.snapshots() == (taken,)
            assert "+a" in await ws.diff()
            assert (await ws.unsaved()).commits == 1
            await ws.push()
            await ws.push_snapshot(taken)
            assert await ws.branch() == "topic"
            with pytest.raises(InvalidInput):
                await ws.read("../x")

    run(main)
    assert git("-C", remote, "log", "-1", "--format=%s", "topic") == "A"


@both
def test_cancelling_a_command_ends_it(
    run: Callable[[Main], None], open_workspace: Open, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"

    async def main() -> None:
        async with open_workspace() as ws:
            with anyio.move_on_after(120) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel_when(pid_file.exists, group.cancel_scope.cancel))
                    await ws.run(
                        f"sleep 1000 & echo $! > {pid_file}.new;mv {pid_file}.new {pid_file}; wait",
                        show=False,
                    )
            assert not scope.cancelled_caught
            assert (await ws.run("echo still here", show=False)).ok

    run(main)
    wait_until(lambda: not Path("/proc", pid_file.read_text().strip()).exists(), "its end")


@both
def test_cancelling_keeps_the_work(
    run: Callable[[Main], None], daemon: DaemonProcess, open_workspace: Open
) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with open_workspace() as ws:
                await ws.write("a", "a")
                scope.cancel()
                await anyio.sleep_forever()

    run(main)
    (kept,) = daemon.json("list-repos")
    assert kept["state"] == "unmounted"
    daemon.run("remount", kept["name"])
    assert Path(kept["mount_point"], "a").read_text() == "a"


@both
def test_cancelling_while_it_mounts_leaves_nothing(
    run: Callable[[Main], None], daemon: DaemonProcess, open_workspace: Open, tmp_path: Path
) -> None:
    """The remote never answers: a fifo is its pack."""
    stuck = tmp_path / "stuck.git"
    git("init", "-q", "--bare", stuck)
    os.mkfifo(stuck / "packed-refs")

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                begun = daemon.state / "repos" / "stuck"
                group.start_soon(cancel_when(begun.exists, scope.cancel))
                async with open_workspace(str(stuck), name="stuck"):
                    raise AssertionError("it cannot be mounted")

    run(main)
    assert daemon.json("list-repos") == []
    assert not mounts_below(daemon.mounts)


def cancel_when(
    condition: Callable[[], bool], cancel: Callable[[], None]
) -> Callable[[], Awaitable[None]]:
    async def watch() -> None:
        while not condition():  # noqa: ASYNC110 - of a file
            await anyio.sleep(0.02)
        cancel()

    return watch
