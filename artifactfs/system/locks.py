"""Locks on files by flock(2): they end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifactfs.system.processes import start_time_of


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock the open file `fd`, unless another has it. Never waits. Raises: OSError."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_lock_file(path: Path) -> int:
    """A descriptor of the lock file at `path`, made where it is missing, for its owner only.

    Raises: OSError.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file at `path`; waits for who has it, however long. Raises: OSError."""
    fd = open_lock_file(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def locked_at_once(path: Path) -> Iterator[bool]:
    """Hold the lock file at `path` unless another has it: then False. Raises: OSError."""
    fd = open_lock_file(path)
    try:
        yield try_lock(fd)
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock file at `path`, which need not exist."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(fd, shared=True)
    finally:
        os.close(fd)


def sign(fd: int) -> None:
    """Have the locked file `fd` say who holds it. Raises: OSError."""
    pid = os.getpid()
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{pid} {start_time_of(pid)}\n".encode(), 0)


def holder_of(path: Path) -> tuple[int, str] | None:
    """The process that holds the lock file at `path`, and when it began (`start_time_of`). None
    where nobody does, or it has not signed."""
    if not is_locked(path):
        return None
    try:
        pid, start = path.read_text().split()
        return (int(pid), start) if start_time_of(int(pid)) == start else None
    except (OSError, ValueError):
        return None
