"""The daemon: one per state root, it keeps every enabled repository mounted.

It never touches a mount itself (a mount that hangs must not hang the daemon) and never talks to a
remote: workers do.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from artifactfs.daemon.control.server import ControlServer
from artifactfs.daemon.host import sdnotify
from artifactfs.daemon.host.privacy import keep_private
from artifactfs.daemon.repositories.registration import check_fuse, forget_adding, make_mount_point
from artifactfs.daemon.repositories.registry import Registration
from artifactfs.daemon.supervisor.commands import Commands
from artifactfs.daemon.supervisor.keeper import KeptMount, inherit
from artifactfs.daemon.supervisor.repositories import Repositories
from artifactfs.daemon.supervisor.store import DescriptorStore, passed
from artifactfs.daemon.supervisor.workers import WorkerPool
from artifactfs.errors import ArtifactFSError, StateError
from artifactfs.paths import StateLayout
from artifactfs.system.files import replace_file
from artifactfs.system.locks import locked_at_once

if TYPE_CHECKING:
    from artifactfs.daemon.supervisor.forkserver import ForkServerProcess
    from artifactfs.daemon.supervisor.metrics import MetricsAddress

log = logging.getLogger(__name__)

IDLE_POLL_S = 1.0
ANSWER_S = 0.1
READY_WAIT_S = 30.0
"""At most this long is the start reported late because a first mount is still being made."""


class Supervisor:
    """The life of a daemon, from its lock to the last unmount."""

    def __init__(
        self,
        state: StateLayout,
        mount_root: Path,
        log_level: str,
        *,
        metrics: MetricsAddress | None = None,
        cache_limit: int | None = None,
        idle_s: float | None = None,
        keep_cpus_awake: bool = False,
        fork_server: ForkServerProcess | None = None,
        hydration_concurrency: int | None = None,
    ) -> None:
        """`cache_limit` is in bytes, None for the default. `keep_cpus_awake`: while there are many
        requests, see `fs.wakefulness`. After `idle_s` seconds without a mount
        and without a command the daemon ends by itself. `fork_server`: one that was started
        already; it is ours from `run` on."""
        self._repositories = Repositories(
            state,
            mount_root,
            WorkerPool(log_level, fork_server, keep_at=state.keeper_socket),
            log_level,
            cache_limit=cache_limit,
            keep_cpus_awake=keep_cpus_awake,
            hydration_concurrency=hydration_concurrency,
        )
        self._store = DescriptorStore() if "NOTIFY_SOCKET" in os.environ else None
        self._repositories.pool.kept.store = self._store
        self._metrics = metrics
        self._idle_s = idle_s
        self._started = time.time()
        self._stopping = trio.Event()
        self._asked = trio.Event()
        self._again = False
        self._leaves = False  # mounts to the next daemon
        self.adopted = False
        """Somebody has made it the daemon that is wanted: see `adopt`."""

    async def run(self) -> bool:
        """Serve until a signal or `artifact-fs daemon stop` comes, then unmount everything.

        Returns whether the daemon is to be started anew.
        Raises: StateError when another daemon serves this state root; MountError without FUSE.
        """
        check_fuse()
        prepare_state_root(self._repositories.state)
        with locked(self._repositories.state):
            self._note_mount_root()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._handle_signals)
                await nursery.start(self._repositories.pool.run)
                if self._store is not None:
                    nursery.start_soon(self._store.run)
                async with trio.open_nursery() as mounts:
                    self._repositories.use(mounts)
                    await self._serve()
                    for supervision in self._repositories.mounts.values():
                        if not (self._leaves and supervision.leave()):
                            supervision.stop()
                log.info("stopped")
                nursery.cancel_scope.cancel()
        return self._again

    def _end(self, again: bool) -> None:
        if not self._asked.is_set():  # whoever asked first is obeyed
            self._again = self._leaves = again
            self._asked.set()

    @property
    def mount_root(self) -> Path:
        return self._repositories.mount_root

    def adopt(self, mount_root: Path) -> None:
        """Do not end when idle any more; mount in `mount_root` from now on."""
        self._idle_s = None
        self.adopted = True
        self._repositories.mount_root = mount_root
        self._note_mount_root()

    async def _end_when_asked(self) -> None:
        """Soon after: whoever asked gets an answer first."""
        await self._asked.wait()
        await trio.sleep(ANSWER_S)
        self._stopping.set()

    def _note_mount_root(self) -> None:
        """For commands that look while no daemon runs. A full disk is no reason not to mount."""
        wanted = os.fsencode(self._repositories.mount_root) + b"\n"
        path = self._repositories.state.mount_root_file
        try:
            if path.exists() and path.read_bytes() == wanted:
                return
            replace_file(path, wanted, mode=0o600)
        except OSError as error:
            log.warning("cannot note the mount root", extra={"error": str(error)})

    async def _serve(self) -> None:
        """Until asked to stop; commands that still run are cancelled, and so taken back."""
        commands = Commands(
            self._repositories,
            self._started,
            self._end,
            adopt=self.adopt if self._idle_s is not None else None,
        )
        server = ControlServer(self._repositories.state.control_socket, commands.table())
        kept = await self._inherit()
        registrations = await self._repositories.registrations()
        await trio.to_thread.run_sync(self._forget_adding, registrations)
        for registration in registrations:
            if registration.damaged is not None:
                fields = {"repo": registration.name, "hint": registration.damaged.hint}
                log.error("%s", registration.damaged.message, extra=fields)
            elif registration.enabled:
                self._start_registered(registration, kept.pop(registration.name, None))
        for mount in kept.values():  # nobody wants them any more
            await self._repositories.pool.end_kept(mount)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            if self._metrics is not None:
                from artifactfs.daemon.supervisor.metrics import serve_metrics

                collect = partial(self._figures, commands)
                await nursery.start(serve_metrics, self._metrics, collect)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._feed_watchdog)
            nursery.start_soon(self._end_when_idle, server)
            nursery.start_soon(self._end_when_asked)
            await self._stopping.wait()
            sdnotify.notify(STOPPING=1, STATUS="unmounting")
            nursery.cancel_scope.cancel()

    def _forget_adding(self, registrations: list[Registration]) -> None:
        for registration in registrations:
            with suppress(OSError):  # then at the next start, or by `gc`
                forget_adding(self._repositories.state.repo(registration.name).directory)

    async def _inherit(self) -> dict[str, KeptMount]:
        """The mounts that a daemon before us has left, by repository. Ours from now on."""
        found = await trio.to_thread.run_sync(inherit, self._repositories.state.keeper_socket)
        kept: dict[str, KeptMount] = {}
        for mount in [*(found.mounts if found is not None else []), *passed()]:
            name = str(mount.message["held"])
            if name in kept or not mount.held.alive:
                os.close(mount.descriptor)
                if self._store is not None and name not in kept:
                    self._store.remove(name)
                continue
            await self._repositories.pool.keep(mount)
            kept[name] = mount
        if found is not None:
            await trio.to_thread.run_sync(found.release)
        if kept:
            log.info("going on with mounts of the daemon before", extra={"repos": sorted(kept)})
        return kept

    def _start_registered(self, registration: Registration, mount: KeptMount | None) -> None:
        settings = self._repositories.resolved(registration.settings)
        try:
            if mount is None:  # else nobody of us may look at it
                make_mount_point(Path(settings.mount_point))
        except ArtifactFSError as error:
            # A dead mount point of an earlier daemon "exists"; anything else the worker reports.
            log.warning("mount point: %s", error, extra={"repo": settings.name})
        was_mounted = registration.mounted is not None
        self._repositories.supervise(
            registration.settings, was_mounted=was_mounted, follows=True, mount=mount
        )

    async def _handle_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) makes it
            numbers.append(signal.SIGHUP)  # the terminal that it was started from is closed
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for number in signals:
                self._leaves = await trio.to_thread.run_sync(sdnotify.is_restarting)
                fields = {"signal": signal.Signals(number).name, "mounts_stay": self._leaves}
                log.info("stopping", extra=fields)
                self._stopping.set()

    async def _figures(self, commands: Commands) -> str:
        """For Prometheus."""
        from artifactfs.daemon.supervisor.metrics import render

        disk = os.statvfs(self._repositories.state.root)
        daemon = {
            "uptime_s": time.time() - self._started,
            "free_bytes": disk.f_bavail * disk.f_frsize,
        }
        return render(await commands.statuses(await self._repositories.registrations()), daemon)

    async def _announce(self) -> None:
        """READY=1 once every mount is there, be it not cloned yet, or has failed once."""
        with trio.move_on_after(READY_WAIT_S):
            for supervision in tuple(self._repositories.mounts.values()):
                await supervision.wait_there()
        mounted = sum(
            supervision.state == "mounted" for supervision in self._repositories.mounts.values()
        )
        total = len(self._repositories.mounts)
        log.info("ready", extra={"mounted": mounted, "enabled": total})
        sdnotify.notify(READY=1, STATUS=f"{mounted} of {total} repositories mounted")

    async def _end_when_idle(self, server: ControlServer) -> None:
        """A command that comes in the last moment is cancelled, and so taken back."""
        since = trio.current_time()
        while self._idle_s is not None:
            if server.connections or any(
                mount.running for mount in self._repositories.mounts.values()
            ):
                since = trio.current_time()
            since = max(since, server.last_served)
            left = since + self._idle_s - trio.current_time()
            if left <= 0:
                log.info("nothing is mounted any more; ending", extra={"idle_s": self._idle_s})
                self._stopping.set()
                return
            await trio.sleep(min(left, IDLE_POLL_S))

    async def _feed_watchdog(self) -> None:
        """This task runs as long as the event loop does: that is what the watchdog is to see."""
        interval_s = sdnotify.watchdog_interval_s()
        while interval_s is not None:
            mounted = sum(
                supervision.state == "mounted" for supervision in self._repositories.mounts.values()
            )
            status = f"{mounted} of {len(self._repositories.mounts)} repositories mounted"
            sdnotify.notify(WATCHDOG=1, STATUS=status)
            await trio.sleep(interval_s)


def prepare_state_root(state: StateLayout) -> None:
    """Create it, 0700, or close it to others. Raises: StateError."""
    try:
        state.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        keep_private(state)
    except OSError as error:
        where = error.filename or state.root
        raise StateError(
            f"cannot use the state root {state.root}: {where}: {error.strerror}",
            hint="choose another: --state-root DIR or $ARTIFACT_FS_ROOT",
        ) from error


@contextmanager
def locked(state: StateLayout) -> Iterator[None]:
    """Hold the state root's lock. Raises: StateError."""
    with locked_at_once(state.lock) as alone:
        if not alone:
            raise StateError(
                f"a daemon runs for {state.root} already",
                hint="artifact-fs status asks it; another state root can have its own",
            )
        yield
