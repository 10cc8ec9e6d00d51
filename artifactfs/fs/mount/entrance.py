"""A mount whose tree is not there yet: who looks into it waits until it is, or is told that it
cannot be.

The kernel's session begins with an `Entrance`, which knows nothing but the root. When the tree is
there, `open_to` puts the handlers of the real `Operations` in place of its own: pyfuse3 looks a
handler up by its name at each request, so that from then on an entrance costs nothing. The session,
and so the mount, is the same all the time: nobody can write into the folder below it.

While it waits, what asks only for the root's attributes or the size of the file system is answered
(``mountpoint``, ``cd``, ``df``); everything else waits, and its caller can be killed. After
`refuse` it gets EIO, until `wait_again`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, StatvfsData

from artifactfs.config import RepoSettings
from artifactfs.features import Features
from artifactfs.fs.kernel.extension import Session
from artifactfs.fs.kernel.interrupt import unless_interrupted
from artifactfs.fs.mount.operations import Operations
from artifactfs.inode_numbers import ROOT_INO

_WAITING = (
    *("lookup", "setattr", "readlink", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir"),
    *("rename", "create", "open", "opendir", "getxattr", "setxattr", "listxattr", "removexattr"),
)
_OTHERS = ("forget", "getattr", "statfs", "read", "write", "release", "fsync")
_OF_DIRECTORIES = ("readdir", "releasedir", "fsyncdir")


class Entrance(pyfuse3.Operations):
    """The requests of a mount that waits for its tree. Its answers are those of one mount only."""

    supports_dot_lookup = False

    def __init__(self, features: Features, settings: RepoSettings) -> None:
        super().__init__()
        self.features = features
        """Of this mount, whatever will be served in it."""
        self.session = Session(features, pyfuse3)
        self.started = trio.Event()
        self.gone = trio.Event()
        """Set when the kernel has the mount no more."""
        self.leaving = trio.CancelScope()
        """Cancel it to unmount."""
        self._settings = settings
        self._opened: Operations | None = None
        self._decided = trio.Event()  # set: opened, or refused
        self._made_ns = time.time_ns()

    def init(self) -> None:
        self.session.begin()
        self.started.set()

    def open_to(self, operations: Operations) -> None:
        """Let everybody in: `operations` answer from now on."""
        operations.adopt(self.session)
        operations.init()
        self._opened = operations
        for name in (*_WAITING, *_OTHERS, *_OF_DIRECTORIES):
            setattr(self, name, getattr(operations, name))
        self._decided.set()

    def refuse(self) -> None:
        """Who waits, and who comes, gets EIO."""
        self._decided.set()

    def wait_again(self) -> None:
        """Who comes waits again."""
        if self._opened is None:
            self._decided = trio.Event()

    async def answer(self, name: str, arguments: tuple[Any, ...], pid: int) -> Any:
        """What the opened mount answers. Raises: FUSEError, EIO where there is none."""
        try:
            await unless_interrupted(pid, self._decided.wait)
        except InterruptedError as error:
            raise FUSEError(errno.EINTR) from error
        if self._opened is None:
            raise FUSEError(errno.EIO)
        return await getattr(self._opened, name)(*arguments)

    # What can be answered without the tree

    async def getattr(self, ino: int, ctx: RequestContext) -> EntryAttributes:
        """Of the root; the kernel keeps nothing of it."""
        entry = EntryAttributes()
        entry.st_ino = ROOT_INO
        entry.st_mode = stat.S_IFDIR | 0o755
        entry.st_nlink = 2
        entry.st_uid = os.getuid() if self._settings.uid is None else self._settings.uid
        entry.st_gid = os.getgid() if self._settings.gid is None else self._settings.gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._made_ns
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return StatvfsData()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        return


def _waits(name: str) -> Any:
    async def handler(self: Entrance, *arguments: Any) -> Any:
        return await self.answer(name, arguments, int(arguments[-1].pid))

    handler.__name__ = name
    return handler


for _name in _WAITING:
    setattr(Entrance, _name, _waits(_name))
