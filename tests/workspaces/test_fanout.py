"""`fanout`: many tasks on forks of one baseline."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

import artifactfs
from artifactfs.client import Artifacts, ArtifactsError, AsyncArtifacts
from artifactfs.errors import InvalidInput
from artifactfs.workspaces.asynchronous import AsyncWorkspace
from artifactfs.workspaces.workspace import Workspace
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

    def task(ws: Workspace, number: int) -> str:
        nonlocal at_once, most
        with lock:
            at_once, most = at_once + 1, max(most, at_once + 1)
        try:
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
