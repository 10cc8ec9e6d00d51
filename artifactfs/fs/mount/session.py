"""One mount: from ``pyfuse3.init`` to a clean unmount."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import stat
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import MountError
from artifactfs.features import Features
from artifactfs.fs.kernel import fastloop
from artifactfs.fs.kernel.extension import Session
from artifactfs.fs.kernel.handover import Beginning, Differs, Handover, is_alive
from artifactfs.fs.kernel.wakefulness import Wakefulness
from artifactfs.fs.mount.entrance import Entrance
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.identity import as_the_daemon
from artifactfs.git.repository.gitdir import is_bare_worktree
from artifactfs.system.mountinfo import read_mountinfo

log = logging.getLogger(__name__)

MAX_TASKS = 4000
"""Handlers that may wait at a time. pyfuse3's own 99 blocked readers would stop the mount."""

MAX_BACKGROUND = 1024
"""The kernel's own limit, 12 readahead requests in flight, lets slow reads stop all others."""

READ_AHEAD_KB = 1024
"""300 requests instead of 2,400 for a sequential read of 300 MB."""


async def serve(
    filesystem: FileSystem,
    mount_point: str | os.PathLike[str],
    *,
    options: Iterable[str] = (),
    keep_awake: bool = False,
    before_unmount: Callable[[], Awaitable[None]] | None = None,
    entrance: Entrance | None = None,
    handover: Handover | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount `filesystem` and serve it until it is unmounted, or until this is cancelled.

    Reports started once the mount answers. When cancelled, unmounts before it returns (lazily
    where files are still open: programs get ENOTCONN then). One mount per process at a time:
    that is how pyfuse3 is made. `keep_awake`: see `wakefulness`. With an `entrance` that is held
    there already, it is opened. `before_unmount` takes away what lies above the mount. `handover`:
    what another process leaves of this mount, and what this one does. Raises: MountError.
    """
    mount = None
    if entrance is None:
        kernel = Session(filesystem.features, pyfuse3)
        filesystem.operations.adopt(kernel)
        native = filesystem.native is not None
        options_of_mount = mount_options(filesystem.settings, options, read_only=native)
        started = filesystem.operations.started
        mount = _Mount(
            filesystem.operations,
            started,
            kernel,
            absolute(mount_point),
            keep_awake,
            before_unmount,
            handover,
        )
        mount.begin(options_of_mount, filesystem.settings)
    with filesystem.served():
        async with trio.open_nursery() as nursery:
            if mount is not None:
                await nursery.start(_serve_until_gone, mount, nursery.cancel_scope)
            elif entrance is not None:
                entrance.open_to(filesystem.operations)
                nursery.start_soon(_stay_until_gone, entrance, nursery.cancel_scope)
            nursery.start_soon(filesystem.convert)
            _tell(filesystem.features)
            nursery.start_soon(filesystem.maintain)
            task_status.started()


async def hold(
    entrance: Entrance,
    settings: RepoSettings,
    *,
    keep_awake: bool = False,
    handover: Handover | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount `entrance` at the mount point of `settings`, until somebody unmounts it or it is to
    leave. Reports started once it is there. Raises: MountError."""
    path = absolute(settings.mount_point)
    mount = _Mount(
        entrance, entrance.started, entrance.session, path, keep_awake, handover=handover
    )
    mount.begin(mount_options(settings), settings)
    try:
        with entrance.leaving:
            await mount.run(task_status=task_status)
    finally:
        entrance.gone.set()


async def _serve_until_gone(
    mount: _Mount,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await mount.run(task_status=task_status)
    scope.cancel()


async def _stay_until_gone(entrance: Entrance, scope: trio.CancelScope) -> None:
    """However it ends, the mount is gone when this returns."""
    try:
        await entrance.gone.wait()
    finally:
        entrance.leaving.cancel()
        with trio.CancelScope(shield=True):
            await entrance.gone.wait()
    scope.cancel()


@dataclass(slots=True)
class _Mount:
    """The kernel's side of one mount: `operations` answer, `started` is set by their `init`."""

    operations: pyfuse3.Operations
    started: trio.Event
    kernel: Session
    path: str
    keep_awake: bool
    before_unmount: Callable[[], Awaitable[None]] | None = None
    handover: Handover | None = None
    wakefulness: Wakefulness = field(default_factory=Wakefulness)
    beginning: Beginning | None = None

    def begin(self, options: set[str], settings: RepoSettings) -> None:
        """Mount; `run` is to be called next. Raises: MountError."""
        held = self.handover.held if self.handover is not None else None
        with as_the_daemon():
            if held is None:
                fd = _mount(self.operations, self.path, options, settings)
            else:
                fd = held.descriptor
                _raise_descriptor_limit()
                pyfuse3.init(self.operations, f"/dev/fd/{fd}", options)
        features = self.kernel.features
        wanted = features.on("fast-loop")
        if self.keep_awake:
            self.kernel.hooks.on_request = self.wakefulness.note_request
        polls = fastloop.POLLS if wanted else 0
        needed = wanted or self.handover is not None
        fits = needed and fd is not None and fastloop.install(pyfuse3, fd, self.kernel.hooks, polls)
        if not fits and wanted:
            features.lacks("fast-loop", "pyfuse3 is not the one it was made for")
        if not fits and self.handover is not None:
            features.lacks("handover", "pyfuse3 is not the one it was made for")
        elif fits and self.handover is not None:
            assert fd is not None
            self._prepare_handover(fd, self.handover)

    def _prepare_handover(self, fd: int, handover: Handover) -> None:
        if not (self.kernel.features.on("handover") or handover.taken_over):
            return
        self.beginning = Beginning(fd, handover.held)
        if not self.beginning.can_resend:
            self.kernel.features.lacks(
                "handover", "this kernel does not send requests again (6.9 does)", expected=True
            )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until somebody unmounts it; when cancelled, unmount."""
        features = self.kernel.features
        try:
            async with trio.open_nursery() as nursery:
                if self.keep_awake:
                    nursery.start_soon(self.wakefulness.run)
                nursery.start_soon(self._answer, nursery.cancel_scope)
                await self.started.wait()
                self.kernel.check()
                if self.beginning is not None:
                    self._go_on(self.beginning)
                if features.on("kernel-limits"):
                    with as_the_daemon():
                        _tune(self.path, features)
                task_status.started()
        finally:
            await self._end()

    async def _answer(self, scope: trio.CancelScope) -> None:
        with contextlib.ExitStack() as stack:
            if self.kernel.features.on("listings-ahead"):
                stack.enter_context(fastloop.watching_turns(self.kernel.hooks))
            await pyfuse3.main(min_tasks=1, max_tasks=MAX_TASKS)
        scope.cancel()

    def _go_on(self, beginning: Beginning) -> None:
        """libfuse has answered FUSE_INIT: to the kernel from now on. Raises: Differs."""
        handover = self.handover
        assert handover is not None
        try:
            held = beginning.finish()
        except Differs:
            handover.leaves = True  # to whoever can go on with it
            raise
        handover.held = held if self.kernel.features.on("handover") else None
        if handover.taken_over:
            beginning.resend()

    async def _end(self) -> None:
        leaves = self.handover is not None and self.handover.stays
        if self.handover is not None:
            self.handover.leaves = leaves
        if self.before_unmount is not None and not leaves:
            with trio.CancelScope(shield=True):
                await self.before_unmount()
        fastloop.remove(pyfuse3)
        with as_the_daemon():
            if leaves:
                pyfuse3.close(unmount=False)
            else:
                self._unmount()
        if self.handover is not None:
            self.handover.held = None  # it is closed with what follows
        if self.beginning is not None:
            self.beginning.close()

    def _unmount(self) -> None:
        handover = self.handover
        if handover is not None and handover.taken_over:  # libfuse does not know where it is
            held, unmount = handover.held, handover.unmount
            if held is not None and unmount is not None and is_alive(held.descriptor):
                unmount(self.path)
        pyfuse3.close(unmount=True)


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as mountinfo shows it; looks at nothing on disk."""
    return os.path.abspath(path)


def stop() -> None:
    """End the `serve` that runs in this process as an unmount would: it returns."""
    pyfuse3.terminate()


def _mount(
    operations: pyfuse3.Operations, path: str, options: set[str], settings: RepoSettings
) -> int | None:
    """Mount and return the descriptor of ``/dev/fuse``. Raises: MountError."""
    check_mount_point(path, Path(settings.git_dir) if settings.git_dir is not None else None)
    _raise_descriptor_limit()
    before = fastloop.fuse_descriptors()
    try:
        pyfuse3.init(operations, path, options)
    except RuntimeError as error:
        raise _explain(path) from error
    opened = fastloop.fuse_descriptors() - before
    return opened.pop() if len(opened) == 1 else None


def mount_options(
    settings: RepoSettings, extra: Iterable[str] = (), *, read_only: bool = False
) -> set[str]:
    """``default_permissions`` always: without it, `allow_other` lets anybody write anything.

    Never ``max_read``: it breaks the mount with libfuse 3.14.
    """
    options = {"default_permissions", "fsname=artifact-fs", "subtype=artifact-fs", *extra}
    if read_only:
        options.add("ro")
    elif settings.allow_other:
        options.add("allow_other")
    return options


def check_mount_point(path: str, gitdir: Path | None = None) -> None:
    if not os.path.exists("/dev/fuse"):
        raise MountError(
            "/dev/fuse is not there: this kernel or container has no FUSE",
            hint="load it with 'modprobe fuse', or start the container with --device /dev/fuse",
        )
    if mount_device(path) is not None:
        raise MountError(
            f"{path} is a mount point already",
            hint=f"unmount it first: fusermount3 -u {path}",
        )
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise MountError(f"{path} is not a directory")
        if not is_bare_worktree(Path(path), gitdir):
            raise MountError(f"{path} is not empty", hint="mount on an empty directory")
    except FileNotFoundError:
        raise MountError(f"{path} does not exist", hint=f"make it: mkdir -p {path}") from None
    except PermissionError as error:
        raise MountError(f"{path}: {error.strerror}") from None


def _explain(path: str) -> MountError:
    """Why libfuse refused; it says so itself on stderr only."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return MountError(
            f"cannot mount on {path}: no permission to open /dev/fuse",
            hint="let your user into the group of /dev/fuse, or run as root",
        )
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        return MountError(
            f"cannot mount on {path}: it is not yours", hint="use a directory that you may write"
        )
    return MountError(
        f"cannot mount on {path}: the kernel or fusermount3 refused",
        hint="it needs root or a setuid fusermount3, and 'user_allow_other' in /etc/fuse.conf"
        " for allow_other; see 'artifact-fs doctor'",
    )


def mount_device(path: str) -> tuple[int, int] | None:
    """(major, minor) of what is mounted on `path`; never touches the mount itself."""
    found = [entry for entry in read_mountinfo() if entry.mount_point == path]
    return (found[-1].major, found[-1].minor) if found else None


def _tell(features: Features) -> None:
    """Say in the log what is off, and why."""
    off = [state for state in features.states().values() if not state.on]
    reasons = ", ".join(f"{state.feature.name} ({state.why})" for state in off)
    if not off:
        log.info("all features are on")
    elif all(state.expected for state in off):
        log.info("features that are off: %s", reasons)
    else:
        log.warning("features that are off: %s", reasons)


def _tune(path: str, features: Features) -> None:
    """Raise the kernel's limits for this mount where we may; it works without."""
    device = mount_device(path)
    if device is None:
        return
    major, minor = device
    connection = f"/sys/fs/fuse/connections/{minor}"
    for file, value in (
        (f"/sys/class/bdi/{major}:{minor}/read_ahead_kb", READ_AHEAD_KB),
        (f"{connection}/max_background", MAX_BACKGROUND),
        (f"{connection}/congestion_threshold", MAX_BACKGROUND * 3 // 4),
    ):
        try:
            with open(file, "w") as knob:
                knob.write(str(value))
        except OSError as error:
            features.lacks(
                "kernel-limits",
                f"cannot set {file}: {error.strerror}",
                expected=error.errno in (errno.ENOENT, errno.EACCES, errno.EROFS, errno.EPERM),
            )


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
