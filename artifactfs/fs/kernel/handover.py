"""A mount that outlives its process: how a session begins, and how another process goes on with it.

The kernel's mount lives as long as any copy of its ``/dev/fuse`` descriptor is open. So somebody
else keeps one (`Held`). When the process that serves the mount dies, programs wait; another one
takes the descriptor, has the kernel send again what nobody has answered (FUSE_NOTIFY_RESEND, Linux
6.9), and goes on. Nobody sees an error.

libfuse begins every session with the kernel's FUSE_INIT request, which comes once in the life of a
mount. So it never gets it from the kernel: one end of a socket pair takes the place of the
descriptor, the request is sent into the other end, and libfuse answers there. The first process
passes the answer on to the kernel, later ones compare it with the first one's: what differs must
not go on, since the kernel keeps to what it was told. Then the descriptor takes its place again.
trio's epoll still watches the socket, so one more datagram wakes it, and from then on it watches
the device. (libfuse: ``lib/fuse_lowlevel.c``, ``fuse_session_mount``; tried with 3.14 and 3.17.)
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from artifactfs.errors import MountError

_INIT = 26
_HEADER = struct.Struct("<IIQQIIIHH")
"""``struct fuse_in_header`` (linux/fuse.h)."""
_IN = struct.Struct("<IIIII")
"""The beginning of ``struct fuse_init_in``: major, minor, max_readahead, flags, flags2."""
_INIT_EXT = 1 << 30
_HAS_RESEND = 1 << (39 - 32)
RESEND = struct.pack("<IiQ", 16, 7, 0)
"""``struct fuse_out_header`` of a notification: its length, FUSE_NOTIFY_RESEND, no request."""
_LARGEST = 1 << 17
"""Bytes that a read of ``/dev/fuse`` must have room for before FUSE_INIT is answered."""

RESENT = 1 << 63
"""In the number of a request: it may have been read by a process that died."""


@dataclass(frozen=True, slots=True)
class Held:
    """A mount that somebody else serves, or served: its ``/dev/fuse``, the kernel's FUSE_INIT and
    the answer that it got."""

    descriptor: int
    init: bytes
    answer: bytes

    @property
    def alive(self) -> bool:
        """Whether the kernel still has the mount: nobody has unmounted it or aborted it."""
        return is_alive(self.descriptor)


def is_alive(descriptor: int) -> bool:
    """Whether the kernel has the mount of a ``/dev/fuse`` descriptor. Never blocks."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


class Differs(MountError):
    """This process would begin the session in another way than the first one did."""


class Beginning:
    """The exchange of FUSE_INIT. Make it after ``pyfuse3.init``, before ``pyfuse3.main``."""

    def __init__(self, descriptor: int, held: Held | None) -> None:
        """`descriptor`: libfuse's. `held`: the mount that is gone on with. Raises: OSError."""
        self._descriptor = descriptor
        self._held = held
        self._device = os.dup(descriptor)
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.init = os.read(self._device, _LARGEST) if held is None else held.init
        os.dup2(self._theirs.fileno(), descriptor, inheritable=False)
        self._ours.send(self.init)

    @property
    def can_resend(self) -> bool:
        """Whether the kernel can send again what was not answered."""
        return kernel_can_resend(self.init)

    def finish(self) -> Held:
        """To be called when libfuse has answered. Raises: Differs."""
        answer = self._ours.recv(_LARGEST, socket.MSG_DONTWAIT)
        if self._held is None:
            os.write(self._device, answer)
        elif answer != self._held.answer:
            raise Differs(
                "this version of ArtifactFS or libfuse would begin the mount in another way",
                hint="programs that use the mount lose their files: artifact-fs remount",
            )
        os.dup2(self._device, self._descriptor, inheritable=False)
        self._ours.send(b"wake")
        return Held(self._device, self.init, answer)

    def resend(self) -> None:
        """Have the kernel send what it has no answer to. Raises: OSError."""
        os.write(self._device, RESEND)

    def close(self) -> None:
        """When the session has ended."""
        self._ours.close()
        self._theirs.close()
        os.close(self._device)


def kernel_can_resend(init: bytes) -> bool:
    """Whether the kernel that sent this FUSE_INIT knows FUSE_NOTIFY_RESEND."""
    if len(init) < _HEADER.size + _IN.size:
        return False
    _major, _minor, _readahead, flags, more = _IN.unpack_from(init, _HEADER.size)
    return bool(flags & _INIT_EXT and more & _HAS_RESEND)


@dataclass(slots=True)
class Handover:
    """What a process gets of a mount, and what it leaves."""

    held: Held | None = None
    """Of the process before; from the beginning of the session on, our own. None: the mount ends
    with this process."""
    unmount: Callable[[str], None] | None = None
    """Unmounts what was taken over: libfuse does not, since it has not mounted it."""
    taken_over: bool = False
    """Another process has begun this mount."""
    leaves: bool = False
    """When the session ends, the mount stays for the next process."""

    @property
    def stays(self) -> bool:
        """Whether the mount is there after the session, for another process."""
        return self.leaves and (self.held is None or self.held.alive)

    @classmethod
    def of(cls, held: Held | None, unmount: Callable[[str], None]) -> Handover:
        return cls(held, unmount, taken_over=held is not None)
