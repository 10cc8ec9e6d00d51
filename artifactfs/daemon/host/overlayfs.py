"""The kernel's overlayfs: whether it can be had here, and mounting it above a mount of ours.

``mount`` is a program. It looks into the mount below and waits for the process that serves it, so
that process must not wait for ``mount``. Paths are relative to the repository's folder, since
options of overlayfs cannot hold every name.
Everything here blocks; call it in a thread.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from artifactfs.daemon.host import mounts
from artifactfs.errors import MountError
from artifactfs.fs.native.marks import MOUNT_OPTIONS, marks_of
from artifactfs.paths import RepoLayout, real_path
from artifactfs.system.mountinfo import file_system_of
from artifactfs.system.processes import may_mount

log = logging.getLogger(__name__)

SOURCE = "artifact-fs"
_DEADLINE_S = 60.0
_TRIAL = ".trial-"
_MOST_STACKED = 100
_BIND = 0x1000 | 0x4000  # MS_BIND | MS_REC
_OPEN_TREE, _MOVE_MOUNT = 428, 429  # system calls: the same numbers on every machine but alpha
_AT_FDCWD = -100
_A_COPY = 0x1 | 0x8000  # OPEN_TREE_CLONE, AT_RECURSIVE
_BENEATH = 0x4 | 0x200  # MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_BENEATH
_libc = ctypes.CDLL(None, use_errno=True)


def mount_above(layout: RepoLayout) -> None:
    """Mount the tree at `RepoLayout.lower`, under the upper folder, at `RepoLayout.merged`.

    Raises: MountError.
    """
    layout.merged.mkdir(mode=0o700, exist_ok=True)
    layout.native_work.mkdir(mode=0o700, exist_ok=True)
    where = {
        "lowerdir": layout.lower.name,
        "upperdir": f"{layout.native.name}/{layout.native_upper.name}",
        "workdir": f"{layout.native.name}/{layout.native_work.name}",
    }
    _mount(layout.directory, where, str(layout.merged))
    # What is unmounted there later must not go from where it is shown as well.
    _run("mount", "--make-rprivate", str(layout.merged))


def put_in_place(layout: RepoLayout, mount_point: str, *, instead: bool = False) -> None:
    """Show what is mounted at `RepoLayout.merged`, with what is mounted in it, at `mount_point`.

    A process that died may have left an overlayfs there, in which programs go on writing; or ours
    comes `instead` of another mount. It is put beneath that, which then goes, so that nobody sees
    the folder underneath. Before Linux 6.5 the old one has to go first. Raises: MountError.
    """
    top = real_path(mount_point)
    # When an overlayfs ends, the kernel first writes back the whole disk under it. An open
    # descriptor puts that off until ours is in place.
    held = os.open(top, os.O_PATH | os.O_CLOEXEC)
    try:
        beneath = False
        if instead or is_ours(mount_point):
            beneath = _mount_beneath(layout.merged, top)
            mounts.detach(top)
        source = os.fsencode(layout.merged)
        if not beneath and _libc.mount(source, os.fsencode(top), None, _BIND, None) != 0:
            number = ctypes.get_errno()
            raise MountError(f"cannot mount on {mount_point}: {os.strerror(number)}")
    finally:
        os.close(held)
    mounts.detach(str(layout.merged))


def _mount_beneath(source: Path, top: str) -> bool:
    """Mount `source`, with what is mounted in it, under what is mounted on `top`. False where the
    kernel does not."""
    tree = _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _A_COPY | os.O_CLOEXEC)
    if tree < 0:
        return False
    try:
        return bool(
            _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(top), _BENEATH) == 0
        )
    finally:
        os.close(tree)


def _mount(folder: Path, where: dict[str, str], mount_point: str) -> None:
    layers = ",".join(f"{name}={path}" for name, path in where.items())
    options = f"nosuid,nodev,{layers},{MOUNT_OPTIONS}"
    _run("mount", "-t", "overlay", "-o", options, "--", SOURCE, mount_point, folder=folder)


def _run(program: str, *arguments: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            [program, "--no-canonicalize", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MountError(f"mount failed: {error}") from error
    if done.returncode != 0:
        said = next(iter(done.stderr.strip().splitlines()), "mount failed")
        raise MountError(f"the kernel mounts no overlayfs: {said.removeprefix('mount: ')}")


def is_ours(mount_point: str) -> bool:
    """Whether the last thing that was mounted there is an overlayfs of ours."""
    found = mounts.mounts_at(mount_point)
    return bool(found) and found[-1].fs_type == "overlay" and found[-1].source == SOURCE


def clear(mount_point: str, layout: RepoLayout) -> None:
    """Detach what a process of before has left of a mount: overlayfs, with what is mounted in it,
    and our own mount below. For whoever holds the worker's lock. Raises: MountError."""
    for _ in range(_MOST_STACKED):
        if not is_ours(mount_point):
            break
        mounts.detach(real_path(mount_point))
    clear_below(layout)


def clear_below(layout: RepoLayout) -> None:
    """The same for our own mount alone: what lies above it still takes writes, and is to be
    replaced (`put_in_place`). Raises: MountError."""
    for place in (layout.merged, layout.lower):
        for _ in range(_MOST_STACKED):
            if not mounts.mounts_at(str(place)):
                break
            mounts.detach(str(place))
        else:
            raise MountError(f"cannot clear the dead mounts at {place}")


def clear_dead(mount_point: str, layout: RepoLayout) -> None:
    """Detach what nobody serves any more at `mount_point`, of either kind. Raises: MountError."""
    if is_ours(mount_point) and mounts.probe(str(layout.lower)) is not mounts.MountState.ALIVE:
        clear(mount_point, layout)
    if mounts.probe(mount_point) is mounts.MountState.DEAD:
        mounts.clear_dead(mount_point)


def why_not(state_root: Path) -> str | None:
    """Why the kernel cannot take the writes of this state root; None: it can. By a trial."""
    if os.geteuid() != 0:
        return "only root may mount an overlayfs"
    if not may_mount():
        return "this process may not mount (it lacks CAP_SYS_ADMIN, as in many containers)"
    _remove_old_trials(state_root)
    try:
        trial = Path(tempfile.mkdtemp(prefix=_TRIAL, dir=state_root))
    except OSError as error:
        return f"no trial can be made in {state_root}: {error.strerror}"
    try:
        return _try(trial)
    except MountError as error:
        return _cause(state_root) or error.message
    except OSError as error:
        return f"an overlayfs in {state_root} does not do what it should: {error}"
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _remove_old_trials(state_root: Path) -> None:
    """Those that somebody killed has left, mounted perhaps."""
    for trial in state_root.glob(f"{_TRIAL}*"):
        try:
            if time.time() - trial.stat().st_mtime > 2 * _DEADLINE_S:
                mounts.detach(str(trial / "merged"))
                shutil.rmtree(trial)
        except (OSError, MountError) as error:
            log.warning("%s stays: %s", trial, error)


def _cause(state_root: Path) -> str | None:
    """Why the trial has failed, where that can be said better than mount(8) does."""
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "this kernel has no overlayfs"
    if file_system_of(state_root) == "overlay":
        where = "as in a container without a volume"
        return f"the state root {state_root} is on an overlayfs itself, {where}"
    return None


def _try(trial: Path) -> str | None:
    """A move of a folder below, which needs `redirect_dir`, and a removal."""
    for name in ("lower/folder", "upper", "work", "merged"):
        (trial / name).mkdir(parents=True)
    (trial / "lower/folder/file").write_text("1")
    merged = trial / "merged"
    where = {"lowerdir": "lower", "upperdir": "upper", "workdir": "work"}
    _mount(trial, where, str(merged))
    try:
        (merged / "folder").rename(merged / "moved")
        (merged / "moved/file").chmod(0o600)
        if not marks_of(os.fsencode(trial / "upper/moved/file")).metacopy:
            return "this kernel copies a file for a chmod (no metacopy)"
        (merged / "moved/file").unlink()
        return None
    finally:
        mounts.detach(str(merged))
