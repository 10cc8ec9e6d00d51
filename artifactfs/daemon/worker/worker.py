"""A mount's process: composes git, hydration and fs, and serves one repository.

The way to a tree that can be read is kept short: clone the tip where there is no gitdir yet, open
the object database, the hydrator and the overlay, mount, report. Everything else happens behind
the mount (`artifactfs.daemon.background.jobs`).

The worker ends when its mount ends, when it is asked to, or when the supervisor is gone (the
channel's end of file): it unmounts first in every case, so that a new daemon finds a free mount
point. It holds ``STATE/repos/NAME/worker.lock`` meanwhile: two processes never serve one overlay.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.background.primer import ForkedPrimer, Primer
from artifactfs.daemon.background.tasks import Background
from artifactfs.daemon.control.messages import Message, error_fields
from artifactfs.daemon.control.server import Command, LineStream, Request, innermost, serve_requests
from artifactfs.daemon.host import logs, mounts, overlayfs, redirects
from artifactfs.daemon.host.outliving import LEAVE, Outliving
from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.daemon.switch.recovery import recover
from artifactfs.daemon.worker.cloning import bring_trees, clone_or_refresh
from artifactfs.daemon.worker.composition import compose
from artifactfs.daemon.worker.covered_gitdir import CoveredGitdir
from artifactfs.daemon.worker.gitdir_health import GitdirHealth, tip_of_head
from artifactfs.daemon.worker.other_user import serve_as_other_user
from artifactfs.daemon.worker.preparation import Preparation, held
from artifactfs.daemon.writes.kinds import Kind, decide
from artifactfs.daemon.writes.moving import move_written
from artifactfs.damage import DamageReport
from artifactfs.errors import ArtifactFSError, CorruptData, DaemonError, MountError, StateError
from artifactfs.features import Features
from artifactfs.fs.inodes.inode import Owner
from artifactfs.fs.mount.arriving import ArrivingTrees
from artifactfs.fs.mount.entrance import Entrance
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.mount.gate import Gate
from artifactfs.fs.mount.session import absolute, check_mount_point, serve
from artifactfs.fs.native import stamps
from artifactfs.fs.native.writes import create_native, is_native
from artifactfs.git.checkout.refused_names import keep_protection
from artifactfs.git.configuration.kept import surroundings_of
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from artifactfs.git.remote.clone import Tip, commit_name
from artifactfs.git.repository.alternates import withdraw
from artifactfs.git.repository.gitdir import trees_to_come
from artifactfs.git.surroundings import adopt
from artifactfs.hydration.background.upkeep import DEFAULT_CACHE_LIMIT
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.paths import RepoLayout, StateLayout, leads_into, real_path
from artifactfs.system.locks import open_lock_file, sign, try_lock

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
STOP_S = 60.0
LOCK_WAIT_S = 10.0  # longer than the fork server of a killed daemon lets its workers linger
LOCK_POLL_S = 0.02
WATCH_S = 1.0
STATE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Of the state root's disk or permissions, so not a mistake of ours."""
NOT_OURS_ERRNOS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO, errno.EUCLEAN)
"""Of a file in the state root: a disk fault, or somebody has put something else there."""
FROM_BACKUP = "artifact-fs unmount it, and restore it from a backup, if there is one"
PR_SET_NAME = 15
SWITCH_INTERVAL_S = 0.0005
"""How long the event loop waits at most for a thread that computes, after each system call: fifty
requests take as long as Python's own 5 ms."""


def run_worker(spec: dict[str, Any], descriptors: list[int], keeper: socket.socket) -> int:
    """Serve one mount; returns the exit status of the process. `descriptors`: the channel, and
    where the mount is taken over, its ``/dev/fuse``. `keeper`: see `outliving`."""
    settings = RepoSettings.from_mapping(spec["settings"])
    logs.configure(spec["log_level"], repo=settings.name)
    _forget_programs_in(settings.mount_point)
    primer = Primer(_fork_primer(StateLayout(Path(spec["state_root"])), settings))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _set_process_name(f"afs:{settings.name}")
    stream = socket.socket(fileno=descriptors[0])
    stream.setblocking(False)
    limit = DEFAULT_CACHE_LIMIT if spec["cache_limit"] is None else int(spec["cache_limit"])
    state = serve_as_other_user(StateLayout(Path(spec["state_root"])), settings)
    worker = Worker(
        state,
        settings,
        stream,
        limit,
        keep_awake=spec["keep_cpus_awake"],
        concurrency=spec["hydration_concurrency"],
        behind_an_entrance=spec["behind_an_entrance"],
        was_mounted=spec.get("was_mounted", False),
        outliving=Outliving.of(settings.name, spec.get("held"), descriptors[1:], keeper),
        primer=primer,
    )
    return trio.run(worker.run)


def _fork_primer(state: StateLayout, settings: RepoSettings) -> ForkedPrimer | None:
    """Where an index will have to be written, by this process's own user."""
    if settings.uid not in (None, os.geteuid()):
        return None
    gitdir = state.repo(settings.name).gitdir
    return None if (gitdir / "index").exists() else ForkedPrimer.fork()


def _set_process_name(name: str) -> None:
    """What ``ps -o comm`` and ``top`` show; 15 bytes."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, os.fsencode(name)[:15], 0, 0, 0)


def _forget_programs_in(mount_point: str) -> None:
    """A shell in the mount that has started us may have ``bin`` of the mount in its PATH: looking
    for git would then ask ourselves."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    kept = [folder for folder in folders if not leads_into(folder or ".", mount_point)]
    os.environ["PATH"] = os.pathsep.join(kept)


class Worker:
    """The life of a mount's process: it puts the parts together, and takes them apart."""

    def __init__(
        self,
        state: StateLayout,
        settings: RepoSettings,
        stream: socket.socket,
        cache_limit: int = DEFAULT_CACHE_LIMIT,
        *,
        outliving: Outliving,
        primer: Primer,
        keep_awake: bool = False,
        concurrency: int | None = None,
        behind_an_entrance: bool = False,
        was_mounted: bool = False,
    ) -> None:
        """`behind_an_entrance`: where there is no gitdir yet, mount first. `was_mounted`: there has
        been one, so that it is a loss."""
        self._outliving = outliving
        self._primer = primer
        self._state = state
        self._concurrency = concurrency
        self._behind_an_entrance = behind_an_entrance
        self._cache_limit = cache_limit
        self._keep_awake = keep_awake
        self._settings = settings
        self._damage = DamageReport()
        self._layout: RepoLayout = state.repo(settings.name)
        self._gitdir = GitdirHealth(self._layout.gitdir, self._damage)
        self._was_mounted = was_mounted
        self._remotes = RemoteConnection(
            self._layout,
            settings.remote,
            settings.deadline_s,
            mount_point=settings.mount_point,
        )
        self._git_place = CoveredGitdir(self._layout.gitdir, settings)
        self._commands = {
            "ping": Command(self._ping, STOP_S),
            "stop": Command(self._stop, STOP_S),
        }
        self._lines = LineStream(trio.SocketStream(trio.socket.from_stdlib_socket(stream)))
        self._serving = trio.CancelScope()
        self._redirected: list[redirects.Redirect] = []
        self._writes = Kind(False, "not settled yet")
        self._gate: Gate | None = None
        self._nursery: trio.Nursery

    # -- life --------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until the mount has ended. Returns the exit status."""
        status = 0
        try:  # before any task is started: they inherit it
            adopt(await surroundings_of(self._layout, self._settings))
        except ArtifactFSError as error:
            await self._report(error)
            return 1
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._answer_requests)
            nursery.start_soon(self._send_heartbeats)
            await nursery.start(self._handle_sigterm)
            try:
                with self._serving:
                    await self._serve()
                self._outliving.let_go()
                if not self._serving.cancel_called:
                    await self.event("unmounted")
            except Exception as error:
                status = 1
                await self._report(innermost(error))
            finally:
                await self._remotes.aclose()
                await self._primer.aclose()
                nursery.cancel_scope.cancel()
        return status

    def stop(self) -> None:
        """End the mount; `run` returns when it is gone."""
        self._outliving.end()
        self._serving.cancel()

    def leave(self) -> None:
        """End, and leave the mount to the next process."""
        self._serving.cancel()

    def _stop_unless_kept(self) -> None:
        """There is no supervisor: the mount goes on where the next one will find it."""
        if not self._outliving.is_kept:
            self.stop()

    async def _stop(self, _request: Request) -> Message:
        self.stop()
        return {}

    async def _ping(self, _request: Request) -> Message:
        """Shows that the event loop runs."""
        return {}

    async def _unmount(self, filesystem: FileSystem) -> None:
        """Unmount unless it, or what is mounted in it, is in use. Raises: MountError."""
        tree = self._redirected_tree()
        await filesystem.filters.end_idle()
        try:
            await trio.to_thread.run_sync(redirects.release, tree)
            await self._git_place.uncover()
            await trio.to_thread.run_sync(mounts.unmount, self._settings.mount_point)
            if self._writes.native:
                await trio.to_thread.run_sync(mounts.unmount, filesystem.served_at)
        except MountError:
            self._redirected = self._prepare_redirects(filesystem)
            is_there = partial(overlayfs.is_ours, self._settings.mount_point)
            if self._writes.native and not await trio.to_thread.run_sync(is_there):
                await self._mount_above(filesystem)
            else:
                await self._cover(filesystem, Path(self._settings.mount_point))
            raise

    async def _put_above(self, filesystem: FileSystem) -> None:
        """What lies above our own mount. It outlives the process as well."""
        is_there = partial(overlayfs.is_ours, self._settings.mount_point)
        taken_over = self._outliving.taken_over and await trio.to_thread.run_sync(is_there)
        if self._writes.native and not taken_over:
            await self._mount_above(filesystem)
        else:
            await self._cover(filesystem, Path(self._settings.mount_point))

    async def _mount_above(self, filesystem: FileSystem) -> None:
        """Put the kernel's overlayfs above our mount, complete at once. Raises: MountError."""
        layout, top = self._layout, self._settings.mount_point
        await trio.to_thread.run_sync(overlayfs.mount_above, layout)
        await self._cover(filesystem, layout.merged)
        gate = self._gate if self._gate is not None and not self._gate.opened else None
        if gate is not None:
            gate.give_way()
        put = partial(overlayfs.put_in_place, layout, top, instead=gate is not None)
        await trio.to_thread.run_sync(put)
        if gate is not None:
            gate.open()

    async def _cover(self, filesystem: FileSystem, top: Path) -> None:
        """What is mounted on folders of the tree at `top`: the gitdir, and what is redirected."""
        served_at = Path(filesystem.served_at)
        await self._git_place.cover(served_at, top, filesystem.waiting_room, filesystem.features)
        tree = replace(self._redirected_tree(), mount_point=top)
        await trio.to_thread.run_sync(redirects.place, tree, self._redirected)

    async def _before_unmount(self) -> None:
        """Our own mount is about to end: what lies above it goes first, open files or not."""
        top = self._settings.mount_point
        try:
            if self._writes.native and await trio.to_thread.run_sync(overlayfs.is_ours, top):
                await trio.to_thread.run_sync(mounts.detach, real_path(top))
        except MountError as error:
            log.warning("left mounted: %s", error.message)

    async def _watch_above(self, filesystem: FileSystem) -> None:
        """Somebody may unmount the overlayfs by umount(8): then our own mount ends as well."""
        top = self._settings.mount_point
        while True:
            await trio.sleep(WATCH_S)
            if not await trio.to_thread.run_sync(overlayfs.is_ours, top):
                break
        await trio.to_thread.run_sync(mounts.detach, filesystem.served_at)

    def _prepare_redirects(self, filesystem: FileSystem) -> list[redirects.Redirect]:
        tree = self._redirected_tree()
        if overlayfs.is_ours(self._settings.mount_point):  # programs write there: it is theirs
            return redirects.prepare(tree, lambda _path: None, lambda _path, _target: None)
        return redirects.prepare(tree, filesystem.make_folder, filesystem.make_link)

    def _redirected_tree(self) -> redirects.Tree:
        return redirects.Tree(self._layout, Path(self._settings.mount_point), self._layout.gitdir)

    async def event(self, name: str, **fields: object) -> None:
        """Tell the supervisor, if it is still there."""
        try:
            await self._lines.send({"event": name, **fields})
        except DaemonError:
            self._stop_unless_kept()

    async def _report(self, error: Exception) -> None:
        if isinstance(error, (MissingObject, CorruptData)):
            error = await self._gitdir.explain(error)
        if isinstance(error, ArtifactFSError):
            fields = error_fields(error)
            if self._is_gitdir_lost():
                fields["message"] += f"; {self._layout.gitdir} is missing, and is to be cloned anew"
            await self.event("failed", error=fields)
            return
        log.error("the mount failed", exc_info=error)
        if isinstance(error, OSError) and error.errno in STATE_ERRNOS:
            where = error.filename or self._layout.directory
            damaged: ArtifactFSError = StateError(f"{where}: {error.strerror}")
        elif (
            isinstance(error, OSError)
            and error.errno in NOT_OURS_ERRNOS
            and str(error.filename).startswith(f"{self._state.root}/")
        ):
            what = f"{error.filename} cannot be used: {error.strerror}"
            damaged = StateError(what, hint="restore it from a backup, or move it away")
        elif isinstance(error, sqlite3.Error):
            damaged = StateError(f"a database of {self._settings.name}: {error}")
        else:
            what = f"internal error: {type(error).__name__}: {error}"
            damaged = DaemonError(what, hint="see the daemon's log")
        await self.event("failed", error=error_fields(damaged))

    async def _answer_requests(self) -> None:
        try:
            await serve_requests(self._lines, self._commands)
        except* DaemonError as group:
            log.error("the supervisor's messages: %s", group.exceptions[0])
        log.debug("the supervisor is gone or lets go")
        self._stop_unless_kept()

    async def _send_heartbeats(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            await self.event("heartbeat")

    async def _handle_sigterm(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, LEAVE) as signals:
            task_status.started()
            async for number in signals:
                if number == LEAVE and self._outliving.is_kept:
                    self.leave()
                else:
                    self.stop()

    # -- the mount ---------------------------------------------------------------------------

    async def _serve(self) -> None:
        async with locked(self._layout):
            decision = partial(decide, self._state, self._layout, self._settings)
            self._writes = await trio.to_thread.run_sync(decision)
            overlay_lost = self._was_mounted and not self._layout.overlay_db.exists()
            if overlay_lost and not self._writes.native:  # else the mount is refused
                what = "was missing, with all that was written: the tree is as it was fetched"
                self._damage.found(self._layout.overlay_db, what, FROM_BACKUP)
            if not self._outliving.taken_over:
                await trio.to_thread.run_sync(self._clear_mounts)
                withdraw(self._layout.gitdir)  # a worker that was killed has left it
            if self._layout.gitdir.exists() or not self._behind_an_entrance:
                await self._serve_gitdir(await self._clone_or_refresh(), None)
            elif self._writes.native:
                await self._serve_behind_a_gate()
            else:
                await self._serve_behind_an_entrance()

    async def _serve_behind_an_entrance(self) -> None:
        """Mount at once; who looks into it waits until the gitdir is there."""
        entrance = Entrance(Features(), self._settings)
        handover, awake = self._outliving.handover, self._keep_awake
        async with held(entrance, self._settings, keep_awake=awake, handover=handover):
            await self._serve_gitdir(await self._prepare_behind(entrance), entrance)

    async def _serve_behind_a_gate(self) -> None:
        """Likewise, where it is the kernel's overlayfs that they are to see."""
        self._gate = Gate(self._settings)
        async with self._gate.held():
            await self._serve_gitdir(await self._prepare_behind(self._gate), None)

    async def _prepare_behind(self, entrance: Entrance | Gate) -> Tip | None:
        preparation = Preparation(entrance, self._clone_or_refresh, self._report, self._use)
        self._commands["retry"] = Command(preparation.retry, STOP_S)
        await self.event("waiting")
        return await preparation.run()

    async def _use(self, settings: Message) -> None:
        """Other settings, for the next attempt at the gitdir."""
        self._settings = RepoSettings.from_mapping(settings)
        adopt(await surroundings_of(self._layout, self._settings))
        await self._remotes.change(self._settings.remote)

    async def _clone_or_refresh(self) -> Tip | None:
        if self._is_gitdir_lost():
            what = "was missing, and is cloned anew: commits that only it had are lost"
            self._damage.found(self._layout.gitdir, what, FROM_BACKUP)
        return await clone_or_refresh(
            self._state,
            self._layout,
            self._settings,
            remotes=self._remotes,
            health=self._gitdir,
            on_clone=partial(self.event, "state", state="cloning"),
            arriving=self._nursery,
        )

    def _is_gitdir_lost(self) -> bool:
        return self._was_mounted and not self._layout.gitdir.exists()

    async def _serve_gitdir(self, tip: Tip | None, entrance: Entrance | None) -> None:
        await keep_protection(self._layout.gitdir)
        await self._gitdir.mend_indexes(deep=False)
        odb = ObjectDatabase(self._layout.gitdir)
        odb.on_corrupt = self._gitdir.met_corrupt
        hydrator = Hydrator(
            state=self._state,
            repo=self._layout,
            settings=self._settings,
            odb=odb,
            connect=self._remotes.open_for_hydration,
            cache_limit=self._cache_limit,
            concurrency=self._concurrency,
            damage=self._damage,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hydrator.run)
            if tip is not None:
                hydrator.fetch_first(tip.tree)
            await self.event("state", state="mounting")
            await self._serve_files(tip, odb, hydrator, entrance)
            nursery.cancel_scope.cancel()

    async def _serve_files(
        self,
        tip: Tip | None,
        odb: ObjectDatabase,
        hydrator: Hydrator,
        entrance: Entrance | None,
    ) -> None:
        open_filesystem = partial(
            FileSystem,
            layout=self._layout,
            settings=self._settings,
            odb=odb,
            hydrator=hydrator,
            tip=tip or tip_of_head(self._layout.gitdir, odb),
            offer=hydrator.offered,
            damage=self._damage,
            place=self._git_place.place,
            features=entrance.features if entrance is not None else None,
            handover=self._outliving.handover,
            arriving=self._arriving_trees(),
        )
        if not self._outliving.taken_over:
            await self._settle_writes(odb, open_filesystem)
        filesystem = open_filesystem(native=self._writes.native)
        if not self._writes.native:
            filesystem.features.lacks("kernel-writes", self._writes.why, expected=True)
        stamps.probe(filesystem.features)
        try:
            await recover(self._layout, odb, filesystem)
            self._redirected = self._prepare_redirects(filesystem)
            await self._mount(filesystem, odb, hydrator, entrance)
        finally:
            if not self._outliving.handover.stays:
                with suppress(OSError):
                    withdraw(self._layout.gitdir)
            filesystem.close()

    def _arriving_trees(self) -> ArrivingTrees | None:
        if trees_to_come(self._layout.gitdir) is None:
            return None
        return ArrivingTrees(self._settings.deadline_s)

    async def _settle_writes(
        self, odb: ObjectDatabase, open_filesystem: Callable[[], FileSystem]
    ) -> None:
        """Have what was written where it is wanted."""
        settings = self._settings
        owner = Owner(
            os.getuid() if settings.uid is None else settings.uid,
            os.getgid() if settings.gid is None else settings.gid,
        )
        mode = 0o755 if settings.allow_other else 0o700
        native = self._writes.native
        await move_written(self._layout, odb, open_filesystem, owner, native=native, top_mode=mode)
        if native and not is_native(self._layout):
            await trio.to_thread.run_sync(create_native, self._layout, owner, mode)

    def _clear_mounts(self) -> None:
        """What a process that died has left. Where the kernel takes the writes, it goes on taking
        them until its place is taken. Raises: MountError."""
        top = self._settings.mount_point
        if self._writes.native and overlayfs.is_ours(top):
            overlayfs.clear_below(self._layout)
            return
        overlayfs.clear(top, self._layout)
        mounts.clear_dead(top)
        if self._writes.native:  # our own mount looks where it is, which is elsewhere
            given = self._settings.git_dir
            check_mount_point(absolute(top), Path(given) if given is not None else None)

    async def _mount(
        self,
        filesystem: FileSystem,
        odb: ObjectDatabase,
        hydrator: Hydrator,
        entrance: Entrance | None,
    ) -> None:
        background = Background(self._settings.name)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as mounting:
                serving = partial(
                    serve,
                    keep_awake=self._keep_awake,
                    entrance=entrance,
                    before_unmount=self._before_unmount,
                    handover=self._outliving.handover,
                )
                if self._writes.native:
                    self._layout.lower.mkdir(mode=0o700, exist_ok=True)
                    self._layout.kernel_writes.touch(mode=0o600)
                await mounting.start(serving, filesystem, filesystem.served_at)
                await nursery.start(background.run)
                behind = partial(self._behind_the_mount, filesystem, odb, hydrator, background)
                nursery.start_soon(behind)
            nursery.cancel_scope.cancel()

    async def _behind_the_mount(
        self,
        filesystem: FileSystem,
        odb: ObjectDatabase,
        hydrator: Hydrator,
        background: Background,
    ) -> None:
        old_versions, jobs, requests = compose(
            self._state,
            self._layout,
            self._settings,
            remotes=self._remotes,
            odb=odb,
            filesystem=filesystem,
            hydrator=hydrator,
            background=background,
            unmount=partial(self._unmount, filesystem),
            writes=self._writes,
            primer=self._primer,
        )
        self._commands.update(requests.table())
        await filesystem.stale.flush()  # what a process before has changed and not told
        await trio.to_thread.run_sync(old_versions.offer_objects)
        await self._put_above(filesystem)
        top, commit = self._settings.mount_point, commit_name(filesystem.base.commit)
        self._outliving.tell(filesystem.features, top, native=self._writes.native)
        writes = self._writes.as_json()
        await self.event("mounted", state="mounted", mount_point=top, commit=commit, writes=writes)
        async with trio.open_nursery() as nursery:
            if self._writes.native:
                nursery.start_soon(self._watch_above, filesystem)
            if filesystem.arriving is not None:
                background.keep("trees", partial(self._bring_trees, filesystem, odb))
                await filesystem.arriving.here.wait()
            nursery.start_soon(self._gitdir.look, odb)
            nursery.start_soon(self._gitdir.keep_indexes, odb)
            nursery.start_soon(jobs.run)
            await filesystem.index_ready.wait()
            await self._git_place.open(filesystem.features)

    async def _bring_trees(self, filesystem: FileSystem, odb: ObjectDatabase) -> None:
        """Fetch what the clone has left out. Raises: RemoteError, CorruptData."""
        arriving = filesystem.arriving
        assert arriving is not None
        arriving.begin()
        try:
            await bring_trees(self._layout, self._remotes)
        except (ArtifactFSError, OSError) as error:
            arriving.failed(str(error))
            raise
        odb.refresh()
        await filesystem.trees_have_come()


@asynccontextmanager
async def locked(layout: RepoLayout) -> AsyncIterator[None]:
    """Hold the repository's worker lock. Raises: StateError if another process keeps it."""
    layout.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = open_lock_file(layout.worker_lock)
    try:
        for _ in range(round(LOCK_WAIT_S / LOCK_POLL_S)):
            if try_lock(descriptor):
                with suppress(OSError):  # a full disk: only a daemon after this one would read it
                    sign(descriptor)
                break
            await trio.sleep(LOCK_POLL_S)
        else:
            raise StateError(
                f"another process serves {layout.directory.name}",
                hint="a daemon that was killed leaves it behind for seconds; else end it",
            )
        yield
    finally:
        os.close(descriptor)
