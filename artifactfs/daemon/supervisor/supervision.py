"""The life of one registered repository's mount: started, watched, restarted, stopped.

One task per repository runs `Supervision.run`. It forks a worker, follows its events, and when it
ends without having been asked to, clears the dead mount and forks again. A worker that sends no
heartbeat for `SILENCE_S`, and then does not answer either, is treated as dead: killed, and where
that does not help (a FUSE deadlock leaves it in uninterruptible sleep) its FUSE connection is
aborted. Only time in which both of us could run counts (`waiting`).
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.channel import WorkerChannel
from artifactfs.daemon.control.messages import Message, error_fields, error_from_fields
from artifactfs.daemon.control.server import Progress
from artifactfs.daemon.host import mounts, overlayfs
from artifactfs.daemon.host.outliving import LEAVE
from artifactfs.daemon.supervisor.keeper import KeptMount
from artifactfs.daemon.supervisor.waiting import sleep_beside, steps
from artifactfs.daemon.supervisor.workers import WorkerPool, WorkerProcess
from artifactfs.errors import ArtifactFSError, DaemonError, MountError
from artifactfs.features import disabled_features
from artifactfs.fs.kernel.handover import Differs
from artifactfs.paths import RepoLayout, StateLayout, real_path
from artifactfs.system.descriptors import closing_descriptor
from artifactfs.system.locks import holder_of
from artifactfs.system.memory import out_of_memory_kills
from artifactfs.system.processes import open_process

log = logging.getLogger(__name__)

SILENCE_S = 45.0
ASK_S = 15.0
"""A silent worker has so long to answer before it is ended: it may have said something that was
read late."""
STOP_S = 8.0  # for a clean stop: the worker flushes its overlay and unmounts
KILL_S = 2.0
LEAVE_S = 3.0  # for a worker that leaves its mount to the next one: it closes its overlay
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 60.0
LONGEST_CRASH_S = 1.0
"""A mount that worked and died is wanted back within 3 s, however often that happens."""
AT_ONCE_S = 0.1
SOON_S = 5.0
GIVEN_UP_AFTER = 5
"""A worker that takes a mount over and dies before it is "mounted", or so soon after, so often in a
row, is damaged: nobody waits for it any longer. The longer time is for one that nobody has killed:
what has ended it may be a request, which the kernel gives to the next one as well."""
STABLE_S = 30.0  # a mount that lived this long starts over with the shortest delay


class Supervision:
    """One repository under the supervisor's care.

    `state` is what ``status`` shows: starting, cloning, mounting, mounted, restarting, failed,
    unmounting or unmounted.
    """

    def __init__(
        self,
        settings: RepoSettings,
        *,
        state: StateLayout,
        pool: WorkerPool,
        log_level: str,
        cache_limit: int | None = None,
        keep_cpus_awake: bool = False,
        hydration_concurrency: int | None = None,
        behind_an_entrance: bool = False,
        was_mounted: bool = False,
        note_mounted: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """`behind_an_entrance`: where it has to be cloned, it is mounted before, and who looks into
        it waits. `was_mounted`: at any time before; else `note_mounted` is called when it is."""
        self.settings = settings
        self.state = "starting"
        self.error: Message | None = None
        self.restarts = 0
        self.pid: int | None = None
        self.mounted_at: float | None = None  # seconds, trio's clock
        self.mounted: Message = {}  # the fields of the worker's event
        self._state_layout = state
        self._pool = pool
        self._log_level = log_level
        self._cache_limit = cache_limit
        self._keep_cpus_awake = keep_cpus_awake
        self._hydration_concurrency = hydration_concurrency
        self._behind_an_entrance = behind_an_entrance
        self._was_mounted = was_mounted
        self._note_mounted = note_mounted
        self._channel: WorkerChannel | None = None
        self._scope = trio.CancelScope()
        self._predecessor: KeptMount | None = None
        self._is_ours = False
        """The mount, if somebody keeps one."""
        self._follows = False
        self._crashed = False
        """The last worker has ended by itself, or was too large, and nobody has killed it."""
        self._kills_before = 0
        self._stop = trio.Event()
        self._retry = trio.Event()
        self._attempted = trio.Event()
        self._there = trio.Event()
        self._waits_behind_entrance = trio.Event()  # of the worker that runs
        self.ended = trio.Event()
        self._heard = False  # anything from the worker, since the last look
        self._listeners: set[Progress] = set()
        self.changed = trio.Event()  # set and replaced at each change of `state`

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    # -- what the supervisor asks ------------------------------------------------------------

    async def wait_ready(self, progress: Progress | None = None) -> None:
        """Until it is mounted. Raises: the error of the first attempt that failed."""
        if progress is not None:
            self._listeners.add(progress)
        try:
            await self._attempted.wait()
        finally:
            if progress is not None:
                self._listeners.discard(progress)
        if self.error is not None:
            raise error_from_fields(self.error)
        if self.state != "mounted":
            raise MountError(f"{self.name} was unmounted before it was ready")

    async def wait_first_attempt(self) -> None:
        """Until the first attempt has succeeded or failed."""
        await self._attempted.wait()

    async def wait_there(self) -> None:
        """Until nobody can take the mount point for an empty folder any more, or it has failed."""
        await self._there.wait()

    def configure(self, log_level: str, cache_limit: int | None) -> None:
        """For the workers that it starts from now on."""
        self._log_level = log_level
        self._cache_limit = cache_limit

    async def request(
        self,
        command: str,
        args: Message | None = None,
        *,
        deadline_s: float,
        progress: Progress | None = None,
    ) -> Any:
        """Ask the worker. Raises: its error, DaemonError where there is none."""
        if self._channel is None:
            raise DaemonError(
                f"{self.name} is not mounted ({self.state})",
                hint=f"artifact-fs remount --name {self.name}",
            )
        return await self._channel.request(command, args, deadline_s=deadline_s, progress=progress)

    async def unmount(self, *, force: bool) -> None:
        """Stop for good. Without `force` refuses while the mount is in use (MountError)."""
        if not force and self.state == "mounted":
            try:
                await self.request("unmount", deadline_s=2 * STOP_S)
            except DaemonError as error:  # it may end before its answer is out
                log.debug("unmount: %s", error, extra={"repo": self.name})
        self.stop()
        await self.ended.wait()

    def follow(self, mount: KeptMount | None) -> None:
        """Before `run`, where a daemon may have been before: what it has left to us. None: nothing,
        so that whoever serves the repository all the same is to end."""
        self._predecessor = mount
        self._is_ours = mount is not None
        self._follows = True

    def _kept(self) -> KeptMount | None:
        """The mount that we have made, or were given, where another worker can go on with it."""
        return self._pool.to_take_over(self.name) if self._is_ours else None

    def leave(self) -> bool:
        """Let the mount go on without us, for the next supervisor. False where it cannot."""
        if self._kept() is None:
            return False
        self._scope.cancel()
        return True

    def stop(self) -> None:
        """Ask for a clean stop; `run` returns when the worker is gone."""
        self._stop.set()
        self._retry.set()

    def retry_now(self) -> None:
        """Do not wait for the next attempt (something it depends on has changed).

        `wait_ready` is about that attempt from now on, not about an earlier one that failed.
        """
        waits = self.state != "mounted" or self.error is not None
        if waits and self.running and self._attempted.is_set():
            self._attempted = trio.Event()
        self._retry.set()

    # -- the task ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep it mounted until `stop`. Cancelling is for a first attempt nobody waits for."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        delay = 0.0
        at_once = 0
        try:
            await self._succeed()
            while not self._finished():
                await self._attempt_safely()
                if self._finished():
                    break
                longest = LONGEST_RETRY_S
                held = await self._what_can_go_on()
                lived = 0.0
                if self.mounted_at is not None:
                    lived = trio.current_time() - self.mounted_at
                    delay = 0.0 if lived > STABLE_S or held is not None else delay
                    longest = LONGEST_CRASH_S
                    self.mounted_at = None
                soon = lived < (SOON_S if self._crashed else AT_ONCE_S)
                at_once = at_once + 1 if held is not None and soon else 0
                if held is not None and at_once >= GIVEN_UP_AFTER:
                    await self._give_up(held)
                    at_once, delay = 0, 0.0
                    continue
                self.restarts += 1
                await self._pause(min(delay, longest))
                delay = min(max(delay, FIRST_RETRY_S) * 2, longest)
            if self._kept() is not None:  # we were stopped while nobody served it
                await self._end_mount(self.settings.mount_point)
        finally:
            self.state = "unmounted"
            self._attempted.set()
            self._there.set()
            self.ended.set()
            self._tell_changed()  # also who has seen that state: `running` is another

    async def _what_can_go_on(self) -> KeptMount | None:
        """The mount that the next worker is to take over."""
        held = self._kept()
        differs = self.error is not None and self.error["type"] == Differs.__name__
        if held is None or not differs:
            return held
        await self._end_mount(self.settings.mount_point)
        return None

    async def _succeed(self) -> None:
        """End the worker of the daemon before, so that one of ours goes on with its mount."""
        mount, self._predecessor = self._predecessor, None
        pidfd = mount.process() if mount is not None else None
        if pidfd is None:
            pidfd = self._holder()
        if pidfd is None:
            if mount is not None and not self._is_wanted(mount):
                await self._end_mount(str(mount.message["mount_point"]))
            return
        with closing_descriptor(pidfd):
            if mount is None:
                log.warning("ending a process that nobody watches", extra={"repo": self.name})
                await _end(pidfd, signal.SIGTERM, STOP_S)
                return
            goes_on = self._is_wanted(mount) and await self._would_go_on(mount)
            if goes_on and not self._finished():
                await _end(pidfd, LEAVE, LEAVE_S)
                return
            if self._finished() or not self._is_wanted(mount):
                await _end(pidfd, signal.SIGTERM, STOP_S)
            else:
                await self._live_with(mount, pidfd)
        await self._end_mount(str(mount.message["mount_point"]))

    def _holder(self) -> int | None:
        """A pidfd of a process that serves the repository, be it that nobody keeps its mount: the
        daemon before was killed together with its fork server."""
        if not self._follows:
            return None
        holder = holder_of(self._state_layout.repo(self.name).worker_lock)
        return open_process(*holder) if holder is not None else None

    async def _would_go_on(self, mount: KeptMount) -> bool:
        """Whether ours can go on with it; waits until that is known, or we are stopped. Meanwhile
        the worker of the daemon before serves it."""
        delay = FIRST_RETRY_S
        while not self._finished():
            try:
                return await self._pool.would_go_on(mount)
            except DaemonError as error:  # no memory for a process, say
                self._show(mount, error)
            await self._pause(delay)
            delay = min(delay * 2, LONGEST_RETRY_S)
        return False

    def _show(self, mount: KeptMount, error: ArtifactFSError) -> None:
        """The mount is served by the worker of the daemon before; `error` says why."""
        self.pid = int(mount.message["pid"])
        self.mounted = {"state": "mounted", "mount_point": self.settings.mount_point}
        log.warning("%s", error.message, extra={"repo": self.name, "hint": error.hint})
        self._set_failed(error_fields(error))
        self._set_state("mounted")

    async def _end_mount(self, mount_point: str) -> None:
        """What is mounted there goes, used or not, though nobody may be there to answer for it, and
        nobody keeps it any more."""
        layout = self._state_layout.repo(self.name)
        with trio.move_on_after(KILL_S):
            try:
                detach = partial(_detach, mount_point, layout)
                await trio.to_thread.run_sync(detach, abandon_on_cancel=True)
            except MountError as error:
                log.warning("left mounted: %s", error.message, extra={"repo": self.name})
        await self._pool.let_go(self.name)

    def _is_wanted(self, mount: KeptMount) -> bool:
        """Whether it is where it is to be, and may have who takes its writes."""
        off = mount.message["kind"] == "kernel" and "kernel-writes" in disabled_features()
        return mount.message["mount_point"] == self.settings.mount_point and not off

    async def _live_with(self, mount: KeptMount, pidfd: int) -> None:
        """The worker of the daemon before goes on serving, until it ends or somebody asks for
        another one: ours cannot go on with what it has begun."""
        self._show(mount, _needs_remount(self.name))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_asked, pidfd)
                await trio.lowlevel.wait_readable(pidfd)
                nursery.cancel_scope.cancel()
        finally:
            self.pid = None

    async def _end_when_asked(self, pidfd: int) -> None:
        await self._retry.wait()
        with trio.CancelScope(shield=True):
            await _end(pidfd, signal.SIGTERM, STOP_S)

    async def _give_up(self, held: KeptMount) -> None:
        """No worker can go on with the mount: whoever uses it gets EIO, until somebody asks for
        another attempt or unmounts it."""
        what = f"the mount's process died at once {GIVEN_UP_AFTER} times"
        hint = f"see the daemon's log; artifact-fs remount --name {self.name} mounts it anew"
        error = DaemonError(f"{what}: programs get an input/output error", hint=hint)
        self._failed(error_fields(error))
        spec = {"settings": asdict(self.settings), "served_at": self._served_at(), "refuses": True}
        try:
            refusing = await self._pool.fork(spec, held)
        except DaemonError:
            await self._end_mount(self.settings.mount_point)
            return
        self.pid = refusing.pid
        try:
            await self._retry.wait()
        finally:
            self.pid = None
            self._retry = trio.Event()
            refusing.signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await refusing.wait()
                await refusing.stream.aclose()
            refusing.close()
        if self._finished():
            await self._end_mount(self.settings.mount_point)

    def _served_at(self) -> list[str]:
        """Where our own mount may be."""
        return [self.settings.mount_point, str(self._state_layout.repo(self.name).lower)]

    def _finished(self) -> bool:
        return self._stop.is_set() or self.state == "unmounted"

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._retry.wait()
        self._retry = trio.Event()

    async def _attempt_safely(self) -> None:
        """A mistake of ours about one mount must not take the others down."""
        try:
            await self._attempt()
        except Exception as error:
            log.error("supervision failed", exc_info=error, extra={"repo": self.name})
            what = f"internal error: {type(error).__name__}"
            self._failed(error_fields(DaemonError(what, hint="see the daemon's log")))

    async def _attempt(self) -> None:
        """Start one worker and see it to its end."""
        self._set_state("starting" if not self.restarts else "restarting")
        spec = {
            "state_root": str(self._state_layout.root),
            "settings": asdict(self.settings),
            "log_level": self._log_level,
            "cache_limit": self._cache_limit,
            "served_at": self._served_at(),
            "keep_cpus_awake": self._keep_cpus_awake,
            "hydration_concurrency": self._hydration_concurrency,
            "behind_an_entrance": self._behind_an_entrance,
            "was_mounted": self._was_mounted,
        }
        held = self._kept()
        self._crashed, self._kills_before = False, out_of_memory_kills()
        try:
            worker = await self._pool.fork(spec, held)
        except DaemonError as error:
            self._failed(error_fields(error))
            return
        self.pid = worker.pid
        channel = self._channel = WorkerChannel(worker.stream)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run, self._on_event)
                nursery.start_soon(self._watch_heartbeat, channel, worker)
                nursery.start_soon(self._stop_when_asked, channel, worker)
                self._waits_behind_entrance = trio.Event()
                nursery.start_soon(self._pass_retries_on, channel)
                await worker.wait()
                with trio.move_on_after(1.0):  # what it said last is still in the socket
                    await channel.closed.wait()
                nursery.cancel_scope.cancel()
        except BaseException:
            # The channel is closed by now, which is a request to unmount and end: but not for a
            # mount that is kept, which goes on without us.
            if self.mounted_at is None or self._kept() is None:
                with trio.CancelScope(shield=True):
                    await self._see_out(worker)
            worker.close()
            raise
        finally:
            self.pid = self._channel = None
        await self._after_exit(worker)

    async def _after_exit(self, worker: WorkerProcess) -> None:
        worker.close()
        status = await self._pool.exit_status(worker.pid)
        by_somebody = status in (None, 0, -signal.SIGKILL, -signal.SIGTERM)
        self._crashed = not by_somebody or out_of_memory_kills() > self._kills_before
        if self._finished():
            if self._kept() is not None:  # it had to be killed
                await self._end_mount(self.settings.mount_point)
            await self._pool.let_go(self.name)
            await self._clear_mount_point()
            log.info("unmounted", extra={"repo": self.name})
            return
        fields = {"repo": self.name, "worker": worker.pid, "status": status, "was": self.state}
        log.warning("the mount's process ended; starting another", extra=fields)
        if self.state != "failed":
            what = f"the mount's process ended unexpectedly (status {status})"
            self._set_failed(error_fields(DaemonError(what, hint="see the daemon's log")))

    async def _clear_mount_point(self) -> None:
        """A worker that had to be killed leaves a dead mount."""
        layout = self._state_layout.repo(self.name)
        clear = partial(_clear, self.settings.mount_point, layout)
        with trio.move_on_after(KILL_S):
            try:
                await trio.to_thread.run_sync(clear, abandon_on_cancel=True)
            except MountError as error:
                log.warning("left mounted: %s", error.message, extra={"repo": self.name})

    async def _on_event(self, message: Message) -> None:
        self._heard = True
        event = message["event"]
        if event == "state":
            self._set_state(str(message["state"]))
        elif event == "mounted":
            self.mounted = {k: v for k, v in message.items() if k != "event"}
            self.mounted_at = trio.current_time()
            self._is_ours = True
            self.error = None
            self._set_state("mounted")
            self._attempted.set()
            self._there.set()
            log.info("mounted", extra={"repo": self.name, **self.mounted})
            if not self._was_mounted:
                self._was_mounted = True
                await self._note_mounted()
        elif event == "waiting":
            self._waits_behind_entrance.set()
            self._there.set()
        elif event == "failed":
            self._failed(message["error"])
        elif event == "unmounted":  # by request, or by somebody else: umount(8), fusermount3 -u
            self._set_state("unmounted")
        for listener in tuple(self._listeners):
            if event in ("state", "progress"):
                await self._tell(listener, message)

    async def _tell(self, listener: Progress, message: Message) -> None:
        try:
            await listener(**{k: v for k, v in message.items() if k != "event"})
        except DaemonError:
            self._listeners.discard(listener)

    def _set_state(self, state: str) -> None:
        if state != self.state:
            log.debug("state", extra={"repo": self.name, "state": state})
            self.state = state
            self._tell_changed()

    def _tell_changed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _failed(self, error: Message) -> None:
        fields = {"repo": self.name, "error": error["type"], "hint": error.get("hint")}
        log.error("cannot mount: %s", error["message"], extra=fields)
        self._set_failed(error)

    def _set_failed(self, error: Message) -> None:
        self.error = error
        self._set_state("failed")
        self._attempted.set()
        self._there.set()

    async def _pass_retries_on(self, channel: WorkerChannel) -> None:
        """To a worker that waits behind its entrance for the next attempt. (Where it does not, it
        ends, and `_pause` is to see that there is a retry.)"""
        await self._waits_behind_entrance.wait()
        while True:
            await self._retry.wait()
            self._retry = trio.Event()
            if self.state not in ("failed", "cloning") or self._stop.is_set():
                continue
            try:
                args = {"settings": asdict(self.settings)}
                await channel.request("retry", args, deadline_s=STOP_S)
            except DaemonError as error:  # it ends, and another one is started
                log.debug("retry: %s", error, extra={"repo": self.name})

    # -- watching and stopping a worker ------------------------------------------------------

    async def _watch_heartbeat(self, channel: WorkerChannel, worker: WorkerProcess) -> None:
        silent_s = 0.0
        async for step_s in steps(worker.pid):
            silent_s = 0.0 if self._heard else silent_s + step_s
            self._heard = False
            if silent_s >= SILENCE_S:
                if not await self._answers(channel, worker):
                    break
                silent_s = 0.0
        log.error("the mount's process hangs; ending it", extra={"repo": self.name})
        await self._kill(worker)

    async def _answers(self, channel: WorkerChannel, worker: WorkerProcess) -> bool:
        """Whether the worker answers within `ASK_S`, or has ended by itself."""
        answered = False

        async def ask(scope: trio.CancelScope) -> None:
            nonlocal answered
            with suppress(DaemonError):
                await channel.request("ping", deadline_s=math.inf)
            answered = True
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, nursery.cancel_scope)
            await sleep_beside(worker.pid, ASK_S)
            nursery.cancel_scope.cancel()
        return answered

    async def _stop_when_asked(self, channel: WorkerChannel, worker: WorkerProcess) -> None:
        """Ask for a clean stop, then enforce it; cancelled as soon as the worker has ended."""
        await self._stop.wait()
        self._set_state("unmounting")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_to_stop, channel)
            await self._escalate(worker)

    async def _ask_to_stop(self, channel: WorkerChannel) -> None:
        try:
            await channel.request("stop", deadline_s=math.inf)
        except DaemonError as error:
            log.debug("stop: %s", error, extra={"repo": self.name})

    async def _see_out(self, worker: WorkerProcess) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._escalate, worker)
            await worker.wait()
            nursery.cancel_scope.cancel()

    async def _escalate(self, worker: WorkerProcess) -> None:
        await sleep_beside(worker.pid, STOP_S)
        log.error("the mount's process does not stop; killing it", extra={"repo": self.name})
        await self._kill(worker)

    async def _kill(self, worker: WorkerProcess) -> None:
        """SIGKILL, and if it survives that in uninterruptible sleep, abort its connection."""
        worker.signal(signal.SIGKILL)
        await trio.sleep(KILL_S)
        log.error("aborting the FUSE connection", extra={"repo": self.name})
        lower = str(self._state_layout.repo(self.name).lower)
        for served_at in (self.settings.mount_point, lower):
            abort = partial(mounts.abort, served_at)
            await trio.to_thread.run_sync(abort, abandon_on_cancel=True)
        worker.signal(signal.SIGKILL)


def _needs_remount(name: str) -> MountError:
    return MountError(
        "served by the version that began the mount: this one would begin it in another way",
        hint=f"artifact-fs remount --name {name}, when no program has files of it open",
    )


async def _end(pidfd: int, number: int, deadline_s: float) -> None:
    """End a process that we have not started by that signal, or else by SIGKILL."""
    own = os.dup(pidfd)  # somebody else may wait for the other one
    with closing_descriptor(own):
        for one in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(own, one)
            with trio.move_on_after(deadline_s):
                await trio.lowlevel.wait_readable(own)
                with suppress(ChildProcessError):  # in a container we may be the first process
                    os.waitid(os.P_PIDFD, own, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222
                return


def _detach(mount_point: str, layout: RepoLayout) -> None:
    overlayfs.clear(mount_point, layout)
    found = mounts.mounts_at(mount_point)
    if found and found[-1].is_fuse and found[-1].source == overlayfs.SOURCE:
        mounts.detach(real_path(mount_point))


def _clear(mount_point: str, layout: RepoLayout) -> None:
    overlayfs.clear(mount_point, layout)
    mounts.clear_dead(mount_point)
