"""Mounts are kept by the fork server for the next daemon, with real processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from artifactfs.daemon.supervisor import workers
from artifactfs.daemon.supervisor.keeper import Kept, KeptMount, inherit
from artifactfs.daemon.supervisor.workers import WorkerPool
from artifactfs.errors import DaemonError
from artifactfs.system.processes import start_time_of

MANY = 300
"""Messages of so many mounts are more than a socket takes at a time."""


def with_pool(keep_at: Path, body: Callable[[WorkerPool], Awaitable[None]]) -> None:
    async def main() -> None:
        pool = WorkerPool("error", keep_at=keep_at)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                await body(pool)
                nursery.cancel_scope.cancel()
        pool.kept.close()

    trio.run(main)


def mount_of(name: str, pid: int, start: str, descriptor: int | None = None) -> KeptMount:
    """As a worker tells of it. Without `descriptor`, one that never has anything to say."""
    message: dict[str, Any] = {"held": name, "pid": pid, "start": start, "mount_point": "/nowhere"}
    message |= {"kind": "fuse", "init": "00" * 104, "answer": "00" * 80}
    if descriptor is None:
        descriptor = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    return KeptMount(message, descriptor)


@pytest.fixture
def sleeping() -> Iterator[int]:
    """A process that has nothing to do with any mount."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def keeper_socket(open_folder: Path) -> Path:
    return open_folder / "keeper.sock"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_many_mounts_are_kept(keeper_socket: Path) -> None:
    """At once, while the fork server is still being started; and nothing is left open of them."""
    pid, start = os.getpid(), start_time_of(os.getpid())
    before = descriptors()

    async def body(pool: WorkerPool) -> None:
        first = pool.pid
        for number in range(MANY):
            await pool.keep(mount_of(f"mount-{number}", pid, start))
        assert first is not None
        os.kill(first, signal.SIGKILL)  # the next one is told of all of them again
        while pool.pid == first:  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.05)
        await pool.fork({"trial": "00"})  # it has heard everything before that

    with_pool(keeper_socket, body)
    inherited = inherit(keeper_socket)
    assert inherited is not None
    names = {mount.message["held"] for mount in inherited.mounts}
    assert names == {f"mount-{number}" for number in range(MANY)}
    for mount in inherited.mounts:
        os.close(mount.descriptor)
    inherited.release()
    assert descriptors() <= before + 1  # what trio keeps


@pytest.mark.parametrize("replaced", [False, True])
def test_whose_socket_was_removed_is_found_with_the_next_mount(
    keeper_socket: Path, replaced: bool
) -> None:
    """By a program that cleans up folders, say. What is there instead may have its inode number."""
    pid, start = os.getpid(), start_time_of(os.getpid())

    async def body(pool: WorkerPool) -> None:
        await pool.keep(mount_of("one", pid, start))
        await pool.fork({"trial": "00"})
        os.unlink(keeper_socket)
        if replaced:
            os.mknod(keeper_socket, stat.S_IFSOCK | 0o600)
        await pool.keep(mount_of("two", pid, start))
        await pool.fork({"trial": "00"})

    with_pool(keeper_socket, body)
    inherited = inherit(keeper_socket)
    assert inherited is not None
    assert {mount.message["held"] for mount in inherited.mounts} == {"one", "two"}
    for mount in inherited.mounts:
        os.close(mount.descriptor)
    inherited.release()


def test_another_process_of_the_same_number_is_not_taken_for_it(sleeping: int) -> None:
    kept = Kept()
    mount = mount_of("one", sleeping, "12345")
    kept.mounts["one"] = mount
    assert mount.process() is None and not mount.is_served()
    assert kept.unserved() == ["one"] and kept.name_of(sleeping) is None
    mount.signal(signal.SIGKILL)
    assert kept._stop(None) == 1
    assert os.waitpid(sleeping, os.WNOHANG) == (0, 0), "it goes on"
    mount.message["start"] = start_time_of(sleeping)
    assert mount.is_served() and kept.name_of(sleeping) == "one" and not kept.unserved()
    mount.signal(signal.SIGKILL)
    os.waitid(os.P_PID, sleeping, os.WEXITED | os.WNOWAIT)
    assert not mount.is_served() and kept.name_of(sleeping) == "one", "until it is waited for"
    kept.close()


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_process_that_comes_too_late_serves_nothing(
    keeper_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked for it has given up, and asks for another one: there must not be two."""
    reads, writes = os.pipe()
    device = mount_of("one", 0, "", reads)
    spec = {"settings": {"name": "one"}, "refuses": True}

    async def body(pool: WorkerPool) -> None:
        await pool.fork({"trial": "00"})  # it is there
        assert pool.pid is not None
        os.kill(pool.pid, signal.SIGSTOP)
        with monkeypatch.context() as patch, pytest.raises(DaemonError):
            patch.setattr(workers, "FORK_DEADLINE_S", 0.2)
            await pool.fork(spec, device)
        os.kill(pool.pid, signal.SIGCONT)
        second = await pool.fork(spec, device)
        while (left := children_of(pool.pid)) != [second.pid]:
            assert second.pid in left
            await trio.sleep(0.02)
        second.signal(signal.SIGKILL)
        await second.wait()
        await second.stream.aclose()
        second.close()

    with_pool(keeper_socket, body)
    for descriptor in (reads, writes):
        with suppress(OSError):
            os.close(descriptor)
