"""When a file loses its set-user-ID and set-group-ID bits.

The rules are those of Linux (``fs/attr.c``, `setattr_should_drop_sgid`). Who applies them depends
on what the kernel was told (``fs/fuse/dir.c``, `fuse_setattr`):

- With FUSE_HANDLE_KILLPRIV it leaves all of it to us. Before a write that takes bits away it sends
  a `setattr` that changes nothing; so is a `chown` that changes nothing.
- Without, it asks for the attributes of a file before each `chown` or write, and sends the mode
  that it thinks of. It does not know that a group without the right to execute loses its bit as
  well where the caller is not in it (`mode_that_may_be`).
- ``O_TRUNC`` that comes with an `open` (ATOMIC_O_TRUNC) is left to us in both cases.

libfuse until 3.16 wants the flag by itself and does not tell the kernel; later ones do neither.
So everything here is done whatever was told.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from dataclasses import dataclass

from artifactfs.system.processes import status_fields

_BITS = stat.S_ISUID | stat.S_ISGID
_CAP_FSETID = 4


@dataclass(frozen=True, slots=True)
class _Process:
    capabilities: int
    groups: frozenset[int]


def has_privileges(mode: int) -> bool:
    """Whether `mode` has bits that can be lost: those of a directory stay."""
    return bool(mode & _BITS) and not stat.S_ISDIR(mode)


def mode_after_change(mode: int, file_gid: int, pid: int, gid: int) -> int:
    """`mode` after a `chown` of a file of the group `file_gid`, or a write by one without
    CAP_FSETID. `pid`, `gid`: of who asks."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not _may_keep_group(file_gid, pid, gid)):
        mode &= ~stat.S_ISGID
    return mode


def mode_after_truncation(mode: int, file_gid: int, pid: int, uid: int, gid: int) -> int:
    """The same after a change of the size: who has CAP_FSETID takes nothing away."""
    process = _process(pid)
    if uid == 0 if process is None else process.capabilities >> _CAP_FSETID & 1:
        return mode
    return mode_after_change(mode, file_gid, pid, gid)


def mode_that_may_be(mode: int, file_gid: int, pid: int, gid: int) -> int:
    """`mode`, which a `setattr` asks for, as far as the caller may have it: a ``chmod`` is right
    already, what the kernel takes away before a write or with a ``chown`` may be too little."""
    if mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID and not _may_keep_group(
        file_gid, pid, gid
    ):
        mode &= ~stat.S_ISGID
    return mode


def _may_keep_group(file_gid: int, pid: int, gid: int) -> bool:
    process = _process(pid)
    if process is None:
        return gid == file_gid
    return (
        gid == file_gid
        or file_gid in process.groups
        or bool(process.capabilities >> _CAP_FSETID & 1)
    )


def _process(pid: int) -> _Process | None:
    """None where it cannot be seen: it has ended, or is of another PID namespace."""
    with suppress(OSError, LookupError, ValueError):
        fields = status_fields(pid)
        groups = frozenset(int(group) for group in fields[b"Groups"].split())
        return _Process(int(fields[b"CapEff"], 16), groups)
    return None
