"""`fanout`: many tasks on forks of one baseline."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import artifactfs
from artifactfs.client import Artifacts, ArtifactsError, AsyncArtifacts
from artifactfs.errors import InvalidInput
from artifactfs.workspaces.asynchronous import AsyncWorkspace
from artifactfs.workspaces.workspace import Workspace
from tests.e2e.mount_table import mounts_below
from tests.e2e.processes import ArtifactsProcess, DaemonProcess
from tests.workspaces.conftest import git


@pytest.fixture
def artifacts(artifacts_server: ArtifactsProcess) -> Artifacts:
    account = artifacts_server.account
    return Artifacts(
        artifacts_server.origin, account, artifacts_server.api_token, artifacts_server.namespace
    )


def test_each_task_has_a_fork(
    daemon: DaemonProcess, artifacts_server: ArtifactsProcess, artifacts: Artifacts, remote: Path
) -> None:
    """One fails, one hits an error, the others are merged; and never more at once than allowed."""
    artifacts_server.create("fan-baseline", remote)
    at_once, most, lock = 0, 0, threading.Lock()
    two = threading.Barrier(2)

    def task(ws: Workspace, number: int) -> str:
        nonlocal at_once, most
        with lock:
            at_once, most = at_once + 1, max(most, at_once + 1)
        try:
            if number < 2:
                two.wait(200)
            ws.write(f"notes/{number}", f"{number}\n")
            ws.run(f"test {number} != 2", show=False)
            ws.commit(f"Task {number}")
            if number == 3:
                raise ZeroDivisionError("task 3")
            return ws.name
        finally:
            with lock:
                at_once -= 1

    with artifacts:
        baseline = artifacts.repo("fan-baseline")
        results = artifactfs.fanout(baseline, task, n=5, concurrency=2, state_root=daemon.state)
        assert [r.number for r in results.passed] == [0, 1, 4]
        for result in results.passed:
            baseline.merge(result.branch, head_repo=result.fork)
        assert [baseline.read_file(f"notes/{n}") for n in (0, 1, 4)] == [b"0\n", b"1\n", b"4\n"]
        for number in (2, 3):
            with pytest.raises(ArtifactsError):
                baseline.read_file(f"notes/{number}")
        assert artifacts.repo(results[2].fork).log()[0].message.strip() == "Task 2"
    assert most == 2
    assert [r.exit_code for r in results] == [0, 0, 1, None, 0]
    assert isinstance(results[3].error, ZeroDivisionError) and not results[3].ok
    assert results[1].value == results[1].name and "+1" in results[1].diff
    assert results[0].usage.disk_bytes > 0 and results[0].mounted_s > 0
    table = str(results).splitlines()
    assert len(table) == 6 and "task 3" in table[4] and "+1 -0" in table[1]
    (kept,) = daemon.json("list-repos")
    assert kept["name"] == results[3].name


def test_a_command_on_branches_of_any_remote(daemon: DaemonProcess, remote: Path) -> None:
    command = 'test "$TASK" != 1 && echo "$TASK" > mine && cat README.md'
    results = artifactfs.fanout(
        str(remote), command, n=3, commit="Mine", state_root=daemon.state, author="A <a@b>"
    )
    assert [r.exit_code for r in results] == [0, 1, 0]
    for result in results.passed:
        assert git("-C", remote, "show", f"{result.branch}:mine") == str(result.number)
    assert [repo["name"] for repo in daemon.json("list-repos")] == []
    with pytest.raises(InvalidInput):
        artifactfs.fanout(str(remote), command, n=0)


@pytest.mark.parametrize("run", [trio.run, asyncio.run])
def test_asynchronous(
    run: Any,
    daemon: DaemonProcess,
    artifacts_server: ArtifactsProcess,
    artifacts: Artifacts,
    remote: Path,
) -> None:
    name = f"fan-async-{run.__module__.partition('.')[0]}"
    artifacts_server.create(name, remote)

    async def task(ws: AsyncWorkspace, number: int) -> int:
        await ws.write("mine", str(number))
        return number * 10

    async def fan() -> Any:
        async with AsyncArtifacts(
            artifacts_server.origin,
            artifacts_server.account,
            artifacts_server.api_token,
            artifacts_server.namespace,
        ) as served:
            return await artifactfs.async_fanout(
                served.repo(name), task, n=3, commit="Mine", state_root=daemon.state
            )

    results = run(fan) if run is trio.run else run(fan())
    assert [r.error for r in results] == [None] * 3
    assert [r.value for r in results] == [0, 10, 20]
    with artifacts:
        found = [artifacts.repo(r.fork).log()[0].message.strip() for r in results]
    assert found == ["Mine"] * 3


INTERRUPTED = """
import artifactfs, sys

def task(ws, number):
    ws.write("mine", str(number))
    print(ws.name, ws.commit(f"Task {number}"), flush=True)
    ws.run("exec sleep 300", show=False)

artifactfs.fanout(sys.argv[1], task, n=6, concurrency=2, author="A <a@b>")
"""


@pytest.mark.timeout(300)
def test_ctrl_c_ends_what_runs_and_loses_nothing(daemon: DaemonProcess, remote: Path) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(remote)],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert script.stdout is not None
    made = dict(script.stdout.readline().split() for _ in range(2))
    script.send_signal(signal.SIGINT)
    more, said = script.communicate(timeout=200)
    assert "KeyboardInterrupt" in said and not more
    check_kept(daemon, made)
    assert all(f"{name}: kept 1 commit of " in said for name in made)


@pytest.mark.parametrize("run", [trio.run, asyncio.run])
def test_cancelling_ends_what_runs_and_loses_nothing(
    run: Any, daemon: DaemonProcess, remote: Path
) -> None:
    made: dict[str, str] = {}
    two_are_made: anyio.Event

    async def task(ws: AsyncWorkspace, number: int) -> None:
        await ws.write("mine", str(number))
        made[ws.name] = str(await ws.commit(f"Task {number}"))
        if len(made) == 2:
            two_are_made.set()
        await ws.run("exec sleep 300", show=False)

    async def fan() -> None:
        nonlocal two_are_made
        two_are_made = anyio.Event()
        options: Any = {"state_root": daemon.state, "author": "A <a@b>"}
        async with anyio.create_task_group() as group:
            group.start_soon(
                partial(artifactfs.async_fanout, str(remote), task, n=6, concurrency=2, **options)
            )
            await two_are_made.wait()
            group.cancel_scope.cancel()

    run(fan) if run is trio.run else run(fan())
    check_kept(daemon, made)


def check_kept(daemon: DaemonProcess, made: dict[str, str]) -> None:
    """These workspaces are there with their commits, unmounted, and no other."""
    assert sorted(repo["name"] for repo in daemon.json("list-repos")) == sorted(made)
    for name, commit in made.items():
        gitdir = daemon.state / "repos" / name / "git"
        assert git(f"--git-dir={gitdir}", "rev-parse", "HEAD") == commit
    assert mounts_below(daemon.mounts) == []
