"""One mount: from ``pyfuse3.init`` to a clean unmount."""

from __future__ import annotations

import errno
import logging
import os
import resource
import stat
from collections.abc import Awaitable, Callable, Iterable

import pyfuse3
import trio

from artifactfs.errors import MountError
from artifactfs.features import Features
from artifactfs.fs.kernel import fastloop
from artifactfs.fs.kernel.extension import Session
from artifactfs.fs.kernel.wakefulness import Wakefulness
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.identity import as_the_daemon
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
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount `filesystem` and serve it until it is unmounted, or until this is cancelled.

    Reports started once the mount answers. When cancelled, unmounts before it returns (lazily
    where files are still open: programs get ENOTCONN then). One mount per process at a time:
    that is how pyfuse3 is made. `keep_awake`: see `wakefulness`. `before_unmount`
    takes away what lies above the mount. Raises: MountError.
    """
    path = absolute(mount_point)
    features = filesystem.features
    kernel = Session(features, pyfuse3)
    filesystem.operations.adopt(kernel)
    with as_the_daemon():
        fd = _mount(filesystem, path, options)
    wakefulness = Wakefulness()
    if features.on("fast-loop"):
        on_request = wakefulness.note_request if keep_awake else fastloop.nothing
        if fd is None or not fastloop.install(pyfuse3, fd, on_request):
            features.lacks("fast-loop", "pyfuse3 is not the one it was made for")
    try:
        with filesystem.served():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(filesystem.convert)
                if keep_awake:
                    nursery.start_soon(wakefulness.run)
                nursery.start_soon(_run_main, nursery.cancel_scope)
                await filesystem.operations.started.wait()
                kernel.check()
                if features.on("kernel-limits"):
                    with as_the_daemon():
                        _tune(path, features)
                _tell(features)
                nursery.start_soon(filesystem.maintain)
                task_status.started()
    finally:
        if before_unmount is not None:
            with trio.CancelScope(shield=True):
                await before_unmount()
        fastloop.remove(pyfuse3)
        with as_the_daemon():
            pyfuse3.close(unmount=True)


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as mountinfo shows it; looks at nothing on disk."""
    return os.path.abspath(path)


def stop() -> None:
    """End the `serve` that runs in this process as an unmount would: it returns."""
    pyfuse3.terminate()


async def _run_main(scope: trio.CancelScope) -> None:
    await pyfuse3.main(min_tasks=1, max_tasks=MAX_TASKS)
    scope.cancel()


def _mount(filesystem: FileSystem, path: str, extra: Iterable[str]) -> int | None:
    """Mount and return the descriptor of ``/dev/fuse``. Raises: MountError."""
    check_mount_point(path)
    _raise_descriptor_limit()
    before = fastloop.fuse_descriptors()
    try:
        pyfuse3.init(filesystem.operations, path, mount_options(filesystem, extra))
    except RuntimeError as error:
        raise _explain(path) from error
    opened = fastloop.fuse_descriptors() - before
    return opened.pop() if len(opened) == 1 else None


def mount_options(filesystem: FileSystem, extra: Iterable[str] = ()) -> set[str]:
    """``default_permissions`` always: without it, `allow_other` lets anybody write anything.

    Never ``max_read``: it breaks the mount with libfuse 3.14.
    """
    options = {"default_permissions", "fsname=artifact-fs", "subtype=artifact-fs", *extra}
    if filesystem.native is not None:
        options.add("ro")
    elif filesystem.settings.allow_other:
        options.add("allow_other")
    return options


def check_mount_point(path: str) -> None:
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
        if os.listdir(path):
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
            hint="chmod 666 /dev/fuse, or run as root",
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
