"""The daemon at its limit of open files: it says so, and its mounts go on."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.supervisor.supervision import Supervision
from artifactfs.daemon.supervisor.workers import WorkerPool
from artifactfs.errors import DaemonError
from artifactfs.paths import StateLayout
from tests.e2e.processes import DaemonProcess, wait_until


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_more_connections_than_descriptors(daemon: DaemonProcess, small_repository: Path) -> None:
    mount = daemon.add_repo("one", str(small_repository))
    for spare in range(4):  # which call is the one that finds none left
        limit = open_files(daemon.pid) + spare
        before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        with ExitStack() as connections:
            for _ in range(8):
                client = connections.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(daemon.state / "control.sock"))
            wait_until(lambda limit=limit: open_files(daemon.pid) >= limit, "no descriptor left")
            connections.callback(resource.prlimit, daemon.pid, resource.RLIMIT_NOFILE, before)
        assert daemon.status("one")["state"] == "mounted"
    assert "README.md" in os.listdir(mount)
    assert daemon.status("one")["restarts"] == 0


@pytest.mark.parametrize("spare", [0, 1, 2, 3])
@pytest.mark.parametrize("who", ["supervisor", "fork server"])
def test_no_descriptor_for_another_worker(
    state: StateLayout, settings: RepoSettings, who: str, spare: int
) -> None:
    """A mount that cannot be made now is made later; nothing else ends."""

    async def main() -> None:
        pool = WorkerPool("warning")
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            with pytest.raises(DaemonError):  # the fork server is ready after that
                await pool.fork({"settings": {"mount_point": "/nowhere"}, "log_level": "none"})
                raise DaemonError("as expected")
            fork_server = pool.pid
            assert fork_server is not None
            pid = os.getpid() if who == "supervisor" else fork_server
            limit = open_files(pid) + spare
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
            one = Supervision(settings, state=state, pool=pool, log_level="warning")
            nursery.start_soon(one.run)
            with trio.move_on_after(0.5):
                await one.wait_there()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            with trio.fail_after(60):
                while one.state != "mounted":
                    one.retry_now()
                    with trio.move_on_after(0.2):
                        await one.changed.wait()
            assert pool.pid == fork_server
            one.stop()
            await one.ended.wait()
            nursery.cancel_scope.cancel()

    trio.run(main)
