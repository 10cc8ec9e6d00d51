"""What the kernel knows of mounts: finding, probing, detaching and aborting them.

Everything here is synchronous; a call on a mount whose process hangs can block, so the event loop
calls `probe` in a thread with a deadline. `/proc/self/mountinfo` never blocks.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import subprocess
import time
from enum import Enum
from pathlib import Path

from artifactfs.errors import MountError
from artifactfs.git.identity import as_the_daemon
from artifactfs.paths import real_path
from artifactfs.system.mountinfo import MountEntry, read_mountinfo

log = logging.getLogger(__name__)

CONNECTIONS = Path("/sys/fs/fuse/connections")
FUSERMOUNT_TIMEOUT_S = 10.0
BUSY_S = 0.5
BUSY_POLL_S = 0.05
MNT_DETACH = 2


class MountState(Enum):
    """`NONE`: nothing is mounted there; `DEAD`: a FUSE mount whose process is gone."""

    NONE = "none"
    ALIVE = "alive"
    DEAD = "dead"


def mounts_at(mount_point: str, *, follow: bool = True) -> list[MountEntry]:
    """What is mounted exactly at `mount_point`, the covering one last.

    Symlinks on the way are followed where nothing is mounted at the path as it is written; without
    `follow`, no file system is asked anything.
    """
    entries = read_mountinfo()
    found = [entry for entry in entries if entry.mount_point == mount_point]
    if not found and follow:
        path = real_path(mount_point)
        found = [entry for entry in entries if entry.mount_point == path]
    return found


def probe(mount_point: str) -> MountState:
    """Whether a mount answers there. Blocks while its process hangs.

    ``stat``, ``ismount`` and, with cached directories, even listing succeed on a dead mount;
    ``statfs`` is always the process's to answer, and says ENOTCONN.
    """
    entries = mounts_at(mount_point)
    if not entries:
        return MountState.NONE
    try:
        with os.scandir(mount_point):
            os.statvfs(mount_point)
            return MountState.ALIVE
    except OSError as error:
        dead = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return MountState.DEAD if dead and entries[-1].is_fuse else MountState.ALIVE


def clear_dead(mount_point: str) -> int:
    """Detach dead FUSE mounts at `mount_point`, return how many there were.

    Raises: MountError when something that is alive, or no mount of ours, is there.
    """
    cleared = 0
    with as_the_daemon():
        while (state := probe(mount_point)) is MountState.DEAD:
            detach(mount_point)
            cleared += 1
            if cleared > 100:
                raise MountError(f"cannot clear the dead mounts at {mount_point}")
    if state is MountState.ALIVE:
        raise MountError(
            f"{mount_point} is a mount point that is in use",
            hint=f"unmount it (umount {mount_point}), or choose another with --mount-root",
        )
    return cleared


def detach(mount_point: str) -> None:
    """Unmount lazily: the name is free at once, open files keep what they have.

    Raises: MountError.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(mount_point), MNT_DETACH) == 0:
            return
        number = ctypes.get_errno()
        if number == errno.EINVAL:
            return  # not mounted any more
        raise MountError(f"cannot unmount {mount_point}: {os.strerror(number)}")
    _fusermount(mount_point, "-uz")


def unmount(mount_point: str) -> None:
    """Unmount, refusing while files are open in it. Raises: MountError.

    A mount that is busy is tried again for `BUSY_S`: a `stat` that is under way keeps it busy as
    well, and a program that has just ended still does for a moment. The mount's own process must
    go on serving meanwhile: call this in a thread or elsewhere.
    """
    end = time.monotonic() + BUSY_S
    while True:
        try:
            with as_the_daemon():
                _unmount_once(mount_point)
        except MountError:
            if time.monotonic() > end:
                raise
            time.sleep(BUSY_POLL_S)
        else:
            return


def _unmount_once(mount_point: str) -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(mount_point), 0) == 0:
            return
        number = ctypes.get_errno()
        if number == errno.EINVAL:
            return
        raise _refused(mount_point, os.strerror(number))
    try:
        _fusermount(mount_point, "-u")
    except MountError as error:
        raise _refused(mount_point, error.message) from error


def _refused(mount_point: str, why: str) -> MountError:
    return MountError(
        f"cannot unmount {mount_point}: {why}",
        hint="close the programs and shells that use it, or give --force",
    )


def _fusermount(mount_point: str, option: str) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise MountError("fusermount3 is not installed", hint="install the package fuse3")
    try:
        done = subprocess.run(
            [program, option, "--", mount_point],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MountError(f"{program} {option} {mount_point} hangs") from error
    if done.returncode != 0 and mounts_at(mount_point):
        raise MountError(done.stderr.strip() or f"{program} failed")


def abort(mount_point: str) -> bool:
    """Abort the FUSE connection mounted at `mount_point`; True if there was one.

    The only cure for a mount process in uninterruptible sleep. Needs root, or the mount's owner.
    """
    entries = [entry for entry in mounts_at(mount_point) if entry.is_fuse]
    if not entries:
        return False
    _ensure_fusectl()
    try:
        (CONNECTIONS / str(entries[-1].minor) / "abort").write_text("1")
    except OSError as error:
        log.warning("cannot abort the connection of %s: %s", mount_point, error)
        return False
    return True


def _ensure_fusectl() -> None:
    if os.geteuid() != 0 or mounts_at(str(CONNECTIONS)):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"fusectl", os.fsencode(CONNECTIONS), b"fusectl", 0, None)
