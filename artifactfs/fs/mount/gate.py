"""A mount point that holds whoever looks into it until another file system is mounted there.

Where the kernel takes the writes, what people see is an overlayfs above a mount of ours, so that no
mount of ours can become it, as an `Entrance` does. Until it is there, this is at the mount point: a
FUSE mount that knows its root's attributes (``mountpoint``, ``df``), and lets everything else wait.
When the overlayfs has taken its place, `open` answers with ESTALE: the kernel then looks the path
up once more, and finds what is there now. Only a program that has made it its current folder before
sees that error; it enters the folder again.

It speaks the kernel's protocol itself (linux/fuse.h, 7.31): pyfuse3 has one session in a process,
and that is of the mount below.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import MountError
from artifactfs.inode_numbers import ROOT_INO

_IN = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, the rest
_OUT = struct.Struct("=IiQ")  # length, error, unique
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_ATTRIBUTES = struct.Struct("=QII6Q10I")
_STATFS = struct.Struct("=5Q4I24x")

_FORGET, _GETATTR, _STATFS_ASKED, _INIT, _INTERRUPT, _DESTROY = 2, 3, 17, 26, 36, 38
_BATCH_FORGET = 42
_UNANSWERED = (_FORGET, _BATCH_FORGET, _DESTROY)
_VERSION = (7, 31)
_PARALLEL_DIROPS = 1 << 18
"""Else the second who looks a name up waits for the first, and cannot be killed."""
_MAX_WRITE = 4096
_BUFFER = 1 << 17
_NOSUID_NODEV = 0x2 | 0x4
_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Gate:
    """As an `Entrance`: who comes waits until `open`, `refuse` lets them fail, for root only."""

    def __init__(self, settings: RepoSettings) -> None:
        self._path = os.path.abspath(settings.mount_point)
        self._allow_other = settings.allow_other
        self._owner = (
            os.getuid() if settings.uid is None else settings.uid,
            os.getgid() if settings.gid is None else settings.gid,
        )
        self._waiting: set[int] = set()
        self._answer: int | None = None  # to everybody: an errno
        self._made_s = int(time.time())
        self._fd = -1
        self._gives_way = False
        self.opened = False

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """It is mounted until it is opened, or to the end of the block, which is cancelled where
        somebody unmounts it before. Raises: MountError."""
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            await trio.to_thread.run_sync(self._mount)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, nursery.cancel_scope)
                yield
                nursery.cancel_scope.cancel()
        finally:
            if not self.opened:  # what is there now is not ours
                _libc.umount2(os.fsencode(self._path), _DETACH)
            os.close(self._fd)

    def _mount(self) -> None:
        options = f"fd={self._fd},rootmode=40755,user_id={os.getuid()},group_id={os.getgid()}"
        options += ",default_permissions" + (",allow_other" if self._allow_other else "")
        words = (b"artifact-fs", os.fsencode(self._path), b"fuse.artifact-fs")
        if _libc.mount(*words, ctypes.c_ulong(_NOSUID_NODEV), options.encode()) != 0:
            why = os.strerror(ctypes.get_errno())
            raise MountError(f"cannot mount on {self._path}: {why}")

    def give_way(self) -> None:
        """Another file system is about to be mounted there. When this one is unmounted then, that
        is no end, though it may be noticed before `open`."""
        self._gives_way = True

    def open(self) -> None:
        """Another file system is mounted there now: who waits, and who still comes, looks anew."""
        self.opened = True
        self._tell(errno.ESTALE)

    def refuse(self) -> None:
        """Who waits, and who comes, gets EIO."""
        self._tell(errno.EIO)

    def wait_again(self) -> None:
        """Who comes waits again."""
        if not self.opened:
            self._answer = None

    def _tell(self, number: int) -> None:
        self._answer = number
        for unique in tuple(self._waiting):
            self._reply(unique, error=number)

    async def _serve(self, scope: trio.CancelScope) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            try:
                request = os.read(self._fd, _BUFFER)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    break  # it is mounted no more
                if error.errno not in (errno.EAGAIN, errno.EINTR, errno.ENOENT):
                    raise
                continue  # ENOENT: whoever asked was killed
            self._take(request)
        if not self._gives_way:
            scope.cancel()

    def _take(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if opcode == _INIT:
            major, minor = _VERSION
            ahead = int(struct.unpack_from("=I", request, _IN.size + 8)[0])
            answer = (major, minor, ahead, _PARALLEL_DIROPS, 0, 0, _MAX_WRITE, 1, 0, 0, 0)
            self._reply(unique, _INIT_OUT.pack(*answer))
        elif opcode == _GETATTR and node == ROOT_INO:
            self._reply(unique, self._attributes())
        elif opcode == _STATFS_ASKED:
            self._reply(unique, _STATFS.pack(0, 0, 0, 0, 0, 512, 255, 0, 0))
        elif opcode == _INTERRUPT:
            interrupted = int(struct.unpack_from("=Q", request, _IN.size)[0])
            if interrupted in self._waiting:
                self._reply(interrupted, error=errno.EINTR)
        elif opcode in _UNANSWERED:
            return
        elif self._answer is not None:
            self._reply(unique, error=self._answer)
        else:
            self._waiting.add(unique)

    def _attributes(self) -> bytes:
        """Of the root; the kernel keeps nothing of it."""
        now = (self._made_s,) * 3
        of_the_root = (stat.S_IFDIR | 0o755, 2, *self._owner, 0, 4096, 0)
        return _ATTRIBUTES.pack(0, 0, 0, ROOT_INO, 0, 0, *now, 0, 0, 0, *of_the_root)

    def _reply(self, unique: int, body: bytes = b"", *, error: int = 0) -> None:
        self._waiting.discard(unique)
        with suppress(FileNotFoundError):  # whoever asked is gone
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), -error, unique) + body)
