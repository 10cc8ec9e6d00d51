"""Whose files are written, and as whom git runs, where root serves another user's tree (`--uid`).

That user's git has to read and write the gitdir, so the gitdir is that user's. Then no process of
root's may follow what the gitdir's config says, nor write where a symlink in it leads. So the
worker does all that it does with files as that user (setfsuid(2): threads inherit it, and programs
that it starts do not), and git processes that work on the gitdir are that user's altogether.
Connections to the remote stay the daemon's, with its keys and its configuration.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ASK = ctypes.c_uint32(-1)
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a group, by number."""

    uid: int
    gid: int

    def process_options(self) -> dict[str, Any]:
        """The arguments with which `subprocess` starts a program as that user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    @property
    def home(self) -> str:
        """Where the user's configuration is."""
        try:
            return pwd.getpwuid(self.uid).pw_dir
        except KeyError:
            return os.devnull


def file_identity() -> Identity:
    """As whom this thread works on files."""
    return Identity(_libc.setfsuid(_ASK) & 0xFFFFFFFF, _libc.setfsgid(_ASK) & 0xFFFFFFFF)


def act_on_files_as(identity: Identity) -> None:
    """From now on, this thread and all that it starts do (not programs). Needs root."""
    os.setgroups([])
    _libc.setfsgid(ctypes.c_uint32(identity.gid))
    _libc.setfsuid(ctypes.c_uint32(identity.uid))


@contextmanager
def as_the_daemon() -> Iterator[None]:
    """Work on files as the daemon's user again: for mounts, and what the kernel has of them.

    For this thread; nothing may be awaited, and no thread started, meanwhile.
    """
    before = file_identity()
    _libc.setfsuid(ctypes.c_uint32(os.geteuid()))
    _libc.setfsgid(ctypes.c_uint32(os.getegid()))
    try:
        yield
    finally:
        _libc.setfsgid(ctypes.c_uint32(before.gid))
        _libc.setfsuid(ctypes.c_uint32(before.uid))


def other_user_of(gitdir: Path | None) -> Identity | None:
    """As whom git works on `gitdir`, where that is not this process's user.

    A folder of the state root that was handed over tells it, too: a gitdir that somebody prepared
    elsewhere does not count.
    """
    if os.geteuid() != 0:
        return None
    own = file_identity()
    if own.uid == 0 and gitdir is not None:
        try:
            found, folder = os.stat(gitdir), os.stat(gitdir.parent)
        except OSError:
            return None
        if found.st_uid == folder.st_uid:
            own = Identity(found.st_uid, found.st_gid)
    return own if own.uid != 0 else None
