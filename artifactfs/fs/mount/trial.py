"""How a session of this process would begin: what libfuse answers to a FUSE_INIT, without a mount.

A process with other code, another libfuse or other features may answer otherwise than the one that
has begun a mount, and the kernel keeps to the first answer. So it is asked before it takes over.
"""

from __future__ import annotations

import socket

import pyfuse3
import trio

from artifactfs.errors import MountError
from artifactfs.features import Features
from artifactfs.fs.kernel.extension import Session
from artifactfs.fs.mount.operations import Operations

_LARGEST = 4096
_DEADLINE_S = 10.0


class _Nothing(pyfuse3.Operations):
    supports_dot_lookup = Operations.supports_dot_lookup  # libfuse tells the kernel

    def __init__(self) -> None:
        super().__init__()
        self.started = trio.Event()
        self._session = Session(Features(), pyfuse3)

    def init(self) -> None:
        self._session.begin()
        self.started.set()


def answer_to(init: bytes) -> bytes:
    """The answer to the kernel's `init`. For a process that serves no mount. Raises: MountError."""
    return trio.run(_answer_to, init)


async def _answer_to(init: bytes) -> bytes:
    operations = _Nothing()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    options = {"default_permissions", "fsname=artifact-fs", "subtype=artifact-fs"}
    try:
        pyfuse3.init(operations, f"/dev/fd/{theirs.detach()}", options)
    except RuntimeError as error:
        raise MountError(f"libfuse begins no session: {error}") from error
    with ours, trio.fail_after(_DEADLINE_S):
        ours.send(init)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await operations.started.wait()
            answer = ours.recv(_LARGEST, socket.MSG_DONTWAIT)
            nursery.cancel_scope.cancel()
    pyfuse3.close(unmount=False)
    return answer
