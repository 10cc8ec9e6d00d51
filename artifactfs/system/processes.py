"""What ``/proc`` tells of processes, proc_pid_status(5) and its siblings."""

from __future__ import annotations

import os

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CAP_SYS_ADMIN = 21  # linux/capability.h


def status_fields(pid: int | str = "self") -> dict[bytes, bytes]:
    """The fields of ``/proc/PID/status``, values with blanks around them. Raises: OSError."""
    with open(f"/proc/{pid}/status", "rb") as file:
        return dict(line.partition(b":")[::2] for line in file.read().splitlines())


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, without which mount(2) refuses."""
    return bool(int(status_fields()[b"CapEff"], 16) >> _CAP_SYS_ADMIN & 1)


def parent_of(pid: int) -> int:
    """The process that started `pid`; 0 where that cannot be seen."""
    try:
        return int(_stat_fields(pid)[1])
    except OSError:
        return 0


def start_time_of(pid: int) -> str:
    """When `pid` started, in clock ticks since the boot: with the number, it names a process for
    good. Raises: OSError."""
    return _stat_fields(pid)[19].decode()


def open_process(pid: int, start: str) -> int | None:
    """A pidfd of `pid` if it is still the process that began at `start` (`start_time_of`)."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        if start_time_of(pid) == start:
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    return None


def _stat_fields(pid: int) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` that follow the name, which may have blanks in it."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def arguments_of(pid: int) -> list[str]:
    """The program and the arguments that `pid` was started with. Raises: OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return os.fsdecode(file.read().rstrip(b"\0")).split("\0")


def environment_of(pid: int) -> list[bytes]:
    """``NAME=VALUE`` of each variable that `pid` was started with. Raises: OSError."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read().split(b"\0")


def resident_bytes(pid: int | None) -> int:
    """The memory that `pid` has in use; 0 where it has just ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
