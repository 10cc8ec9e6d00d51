"""Workers are forked, watched, restarted and stopped; with real processes and mounts."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.host import mounts
from artifactfs.daemon.supervisor import supervision, workers
from artifactfs.daemon.supervisor.keeper import KeptMount
from artifactfs.daemon.supervisor.supervision import Supervision
from artifactfs.daemon.supervisor.workers import WorkerPool
from artifactfs.errors import DaemonError, MountError, RemoteError
from artifactfs.paths import StateLayout

Body = Callable[[WorkerPool, Supervision], Awaitable[None]]


def supervised(state: StateLayout, settings: RepoSettings, body: Body) -> None:
    """Run `body` with a supervision that was just started."""

    async def main() -> None:
        pool = WorkerPool("warning")
        one = Supervision(settings, state=state, pool=pool, log_level="warning")
        with trio.fail_after(200):
            async with trio.open_nursery() as nursery:
                await nursery.start(pool.run)
                nursery.start_soon(one.run)
                await body(pool, one)
                one.stop()
                await one.ended.wait()
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until_state(one: Supervision, state: str) -> None:
    while one.state != state:
        await one.changed.wait()


async def until_replaced(one: Supervision, pid: int) -> None:
    """Until another worker than `pid` serves the mount."""
    while one.state != "mounted" or one.pid == pid:
        await one.changed.wait()


async def until_kept(pool: WorkerPool, one: Supervision) -> None:
    """Until another worker could go on with it: a little later than it can be read."""
    await one.wait_ready()
    while pool.to_take_over(one.name) is None:  # noqa: ASYNC110 - nobody tells of it
        await trio.sleep(0.01)


async def left_by(one: Supervision, pool: WorkerPool) -> KeptMount:
    """Its mount, which goes on without it."""
    assert one.leave()
    await one.ended.wait()
    return pool.kept.mounts[one.name]


def test_mounted_and_stopped(state: StateLayout, settings: RepoSettings) -> None:
    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        assert one.state == "mounted"
        assert (Path(settings.mount_point) / "README.md").exists()
        answer = await one.request("status", deadline_s=60)
        assert answer["ref"] == "main"

    supervised(state, settings, body)
    assert not mounts.mounts_at(settings.mount_point)


def test_a_clone_that_fails_is_reported_and_tried_again(
    state: StateLayout, settings: RepoSettings, tmp_path: Path, small_repository: Path
) -> None:
    later = tmp_path / "later.git"

    async def body(_pool: WorkerPool, one: Supervision) -> None:
        with pytest.raises(RemoteError):
            await one.wait_ready()
        assert one.error is not None
        later.symlink_to(small_repository)
        one.retry_now()
        await until_state(one, "mounted")
        assert one.error is None

    supervised(state, replace(settings, remote=str(later)), body)


def test_a_killed_worker_is_replaced(state: StateLayout, settings: RepoSettings) -> None:
    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        first = one.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until_replaced(one, first)
        assert one.restarts == 1
        assert (Path(settings.mount_point) / "README.md").exists()

    supervised(state, settings, body)


def test_a_worker_that_hangs_is_replaced(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "SILENCE_S", 6.0)
    monkeypatch.setattr(supervision, "ASK_S", 4.0)

    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        worker = one.pid
        assert worker is not None
        with open(Path(settings.mount_point) / "README.md") as opened:  # noqa: ASYNC230 - is here
            os.kill(worker, signal.SIGSTOP)
            await until_replaced(one, worker)
            assert await trio.to_thread.run_sync(opened.read) == "# Small\n"

    supervised(state, settings, body)


def test_a_worker_that_was_late_is_kept(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent for a while, and then it answers; and stopped with all of us, for longer than that."""
    monkeypatch.setattr(supervision, "SILENCE_S", 0.5)
    monkeypatch.setattr(supervision, "ASK_S", 8.0)

    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        worker = one.pid
        assert worker is not None
        with open(Path(settings.mount_point) / "README.md") as opened:  # noqa: ASYNC230 - is here
            os.kill(worker, signal.SIGSTOP)
            await trio.sleep(1.5)
            os.kill(worker, signal.SIGCONT)
            await trio.sleep(0.6)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(9.0)  # noqa: ASYNC251 - the supervisor, this process, does not run either
            os.kill(worker, signal.SIGCONT)
            await trio.sleep(1.5)
            assert (one.pid, one.restarts) == (worker, 0)
            assert await trio.to_thread.run_sync(opened.read)

    supervised(state, settings, body)


def test_a_worker_that_does_not_stop_is_killed_and_its_mount_cleared(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "STOP_S", 0.2)

    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        assert one.pid is not None
        os.kill(one.pid, signal.SIGSTOP)

    supervised(state, settings, body)
    assert not mounts.mounts_at(settings.mount_point)


def test_workers_outlive_the_fork_server(state: StateLayout, settings: RepoSettings) -> None:
    async def body(pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        worker = one.pid
        assert pool.pid is not None and worker is not None
        os.kill(pool.pid, signal.SIGKILL)
        await trio.to_thread.run_sync(os.listdir, settings.mount_point)
        assert one.pid == worker
        os.kill(worker, signal.SIGKILL)
        await until_replaced(one, worker)

    supervised(state, settings, body)


def test_a_fork_server_that_cannot_be_started_is_tried_again(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "FIRST_RESTART_DELAY_S", 0.1)

    async def body(pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        first = pool.pid
        assert first is not None
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python")
            os.kill(first, signal.SIGKILL)
            await trio.sleep(0.5)
        assert one.state == "mounted"
        worker = one.pid
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        await until_replaced(one, worker)
        assert pool.pid != first

    supervised(state, settings, body)


def test_somebody_else_unmounts(state: StateLayout, settings: RepoSettings) -> None:
    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        await trio.run_process(["umount", "--recursive", settings.mount_point])
        await one.ended.wait()
        assert one.state == "unmounted"
        assert one.restarts == 0

    supervised(state, settings, body)


def test_unmount_refuses_while_in_use(state: StateLayout, settings: RepoSettings) -> None:
    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        path = f"{settings.mount_point}/README.md"
        descriptor = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY)
        with pytest.raises(MountError, match="busy"):
            await one.unmount(force=False)
        assert await trio.to_thread.run_sync(os.pread, descriptor, 100, 0) == b"# Small\n"
        await one.unmount(force=True)
        assert not mounts.mounts_at(settings.mount_point)
        with pytest.raises(OSError) as caught:
            os.fstat(descriptor)
        assert caught.value.errno == errno.ENOTCONN
        with suppress(OSError):  # its flush finds nobody either
            os.close(descriptor)

    supervised(state, replace(settings, writes="fuse"), body)


def test_who_waits_for_a_change_learns_of_the_end(
    state: StateLayout, settings: RepoSettings
) -> None:
    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()

        async def watch() -> None:
            while one.running:
                await one.changed.wait()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await trio.run_process(["umount", "--recursive", settings.mount_point])

    supervised(state, settings, body)


def test_settled_after_a_retry_is_about_the_new_attempt(
    state: StateLayout, settings: RepoSettings, tmp_path: Path, small_repository: Path
) -> None:
    later = tmp_path / "later.git"

    async def body(_pool: WorkerPool, one: Supervision) -> None:
        with pytest.raises(RemoteError):
            await one.wait_ready()
        later.symlink_to(small_repository)
        one.retry_now()
        await one.wait_ready()
        assert one.state == "mounted"

    supervised(state, replace(settings, remote=str(later)), body)


def test_an_unmount_that_nobody_waits_for_and_is_refused(
    state: StateLayout, settings: RepoSettings
) -> None:
    """It is as if it had not been asked for: a worker that dies later is replaced."""

    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        worker = one.pid
        assert worker is not None
        path = f"{settings.mount_point}/README.md"
        descriptor = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY)
        with trio.move_on_after(0.1):
            await one.unmount(force=False)
        await trio.sleep(1)  # it is refused meanwhile
        assert one.state == "mounted"
        os.kill(worker, signal.SIGKILL)
        await until_replaced(one, worker)
        with suppress(OSError):  # its flush finds nobody
            os.close(descriptor)

    supervised(state, settings, body)


def test_two_processes_never_serve_one_repository(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        other = Supervision(settings, state=state, pool=pool, log_level="error")
        with trio.move_on_after(1.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.run)
                await other.wait_ready()
        assert other.state != "mounted"
        assert one.state == "mounted"
        assert len(mounts.mounts_at(settings.mount_point)) == 1

    supervised(state, settings, body)


def test_a_daemon_that_has_no_memory_at_first_goes_on_with_the_mount(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot say yet whether it may: the process of the daemon before serves it meanwhile."""
    fails = True
    would_go_on = WorkerPool.would_go_on

    async def may_fail(pool: WorkerPool, mount: KeptMount) -> bool:
        if fails:
            raise DaemonError("cannot start a process for the mount: no memory")
        return await would_go_on(pool, mount)

    monkeypatch.setattr(WorkerPool, "would_go_on", may_fail)

    async def body(pool: WorkerPool, one: Supervision) -> None:
        nonlocal fails
        await until_kept(pool, one)
        worker = one.pid
        with open(Path(settings.mount_point) / "README.md") as opened:  # noqa: ASYNC230 - is here
            after = Supervision(settings, state=state, pool=pool, log_level="warning")
            after.follow(await left_by(one, pool))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(after.run)
                await until_state(after, "mounted")
                assert after.pid == worker and after.error is not None
                assert "no memory" in after.error["message"]
                fails = False
                after.retry_now()
                await until_replaced(after, worker or 0)
                assert after.error is None
                assert await trio.to_thread.run_sync(opened.read) == "# Small\n"
                opened.close()
                after.stop()

    supervised(state, settings, body)
    assert not mounts.mounts_at(settings.mount_point)


@pytest.mark.parametrize("fails", [True, False])
def test_stopped_before_it_has_gone_on_with_the_mount(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    async def cannot_say(_pool: WorkerPool, _mount: KeptMount) -> bool:
        if fails:
            raise DaemonError("cannot start a process for the mount: no memory")
        return False

    monkeypatch.setattr(WorkerPool, "would_go_on", cannot_say)

    async def body(pool: WorkerPool, one: Supervision) -> None:
        await until_kept(pool, one)
        after = Supervision(settings, state=state, pool=pool, log_level="warning")
        after.follow(await left_by(one, pool))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after.run)
            await until_state(after, "mounted")
            after.stop()
        assert settings.name not in pool.kept.mounts

    supervised(state, settings, body)
    assert not mounts.mounts_at(settings.mount_point)


@pytest.mark.parametrize("worker_dies", [True, False])
def test_the_next_daemon_wants_the_mount_elsewhere(
    state: StateLayout, settings: RepoSettings, tmp_path: Path, worker_dies: bool
) -> None:
    elsewhere = replace(settings, mount_point=str(tmp_path / "elsewhere"))
    Path(elsewhere.mount_point).mkdir()

    async def body(pool: WorkerPool, one: Supervision) -> None:
        await until_kept(pool, one)
        worker = one.pid
        assert worker is not None
        mount = await left_by(one, pool)
        if worker_dies:
            os.kill(worker, signal.SIGKILL)
        after = Supervision(elsewhere, state=state, pool=pool, log_level="warning")
        after.follow(mount)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after.run)
            await until_state(after, "mounted")
            assert await trio.to_thread.run_sync(os.listdir, elsewhere.mount_point)
            assert not mounts.mounts_at(settings.mount_point)
            after.stop()

    supervised(state, settings, body)
    assert not mounts.mounts_at(elsewhere.mount_point)


def test_a_worker_that_crashes_again_and_again_is_given_up(
    state: StateLayout, settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after it is mounted, each time: what ends it may be a request that comes again. One that
    somebody kills as often is replaced."""
    monkeypatch.setattr(supervision, "SOON_S", 60.0)

    async def body(pool: WorkerPool, one: Supervision) -> None:
        await until_kept(pool, one)
        await die(one, [signal.SIGKILL] * 6)
        await die(one, [signal.SIGSEGV] * 4 + [signal.SIGKILL])
        await die(one, [signal.SIGSEGV] * 4)
        assert one.pid is not None
        os.kill(one.pid, signal.SIGSEGV)
        await until_state(one, "failed")
        while one.error is None or "died at once" not in one.error["message"]:
            await one.changed.wait()
        with pytest.raises(OSError) as caught:
            await trio.to_thread.run_sync(os.stat, Path(settings.mount_point) / "nothing")
        assert caught.value.errno == errno.EIO
        one.retry_now()
        await until_state(one, "mounted")
        assert await trio.to_thread.run_sync(os.listdir, settings.mount_point)

    async def die(one: Supervision, numbers: list[signal.Signals]) -> None:
        for number in numbers:
            worker = one.pid
            assert worker is not None
            await trio.sleep(0.2)  # longer than what counts as at once
            os.kill(worker, number)
            await until_replaced(one, worker)

    supervised(state, settings, body)


def test_requests_need_a_mount(state: StateLayout, settings: RepoSettings) -> None:
    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        await one.unmount(force=False)
        with pytest.raises(DaemonError, match="not mounted"):
            await one.request("status", deadline_s=1)

    supervised(state, settings, body)


def test_an_idle_worker_is_small(state: StateLayout, settings: RepoSettings) -> None:
    async def body(_pool: WorkerPool, one: Supervision) -> None:
        await one.wait_ready()
        status = await trio.Path(f"/proc/{one.pid}/status").read_text()
        rss_kib = next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)
        assert rss_kib < 60 * 1024

    supervised(state, settings, body)
