"""What libfuse forgets to tell the kernel when a mount begins.

libfuse (3.14) offers FUSE_CAP_HANDLE_KILLPRIV and wants it by default, but leaves it out of its
reply to the kernel's first request, FUSE_INIT. So that reply is written here, with the flag; after
it libfuse writes by itself again (``fuse_session_custom_io``). `privileges` does what the flag
promises. Where libfuse is another one, nothing is changed.
"""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

_HANDLE_KILLPRIV = 1 << 19
"""Of the flags in ``struct fuse_init_out`` (``linux/fuse.h``)."""
_FLAGS_OFFSET = 12
_LEAST_INIT_OUT = 24


class _Vector(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_Writev = ctypes.PYFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_int, ctypes.c_void_p
)


class _CustomIO(ctypes.Structure):
    """``struct fuse_custom_io``."""

    _fields_ = (
        ("writev", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("splice_receive", ctypes.c_void_p),
        ("splice_send", ctypes.c_void_p),
    )


def complete(session: int) -> object | None:
    """Add what is missing to the next reply of `session`, a ``struct fuse_session *``, which is
    that to FUSE_INIT. To be called by libfuse's `init` handler. Keep the result: it is called."""
    try:
        fuse = ctypes.PyDLL("libfuse3.so.3")
        custom_io, session_fd = fuse.fuse_session_custom_io, fuse.fuse_session_fd
    except (OSError, AttributeError) as error:
        log.debug("libfuse's first reply stays as it is: %s", error)
        return None
    custom_io.argtypes = (ctypes.c_void_p, ctypes.POINTER(_CustomIO), ctypes.c_int)
    session_fd.argtypes = (ctypes.c_void_p,)
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.writev.restype = ctypes.c_ssize_t
    libc.writev.argtypes = (ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_int)
    # They ignore the fourth argument that libfuse gives them.
    write, read = (ctypes.cast(f, ctypes.c_void_p).value for f in (libc.writev, libc.read))

    def reply(fd: int, vectors: ctypes._Pointer[_Vector], count: int, _: int) -> int:
        if count == 2 and vectors[1].length >= _LEAST_INIT_OUT:
            flags = ctypes.c_uint32.from_address(vectors[1].base + _FLAGS_OFFSET)
            flags.value |= _HANDLE_KILLPRIV
        custom_io(session, _CustomIO(write, read), fd)
        written: int = libc.writev(fd, vectors, count)
        return written

    callback = _Writev(reply)
    ours = _CustomIO(ctypes.cast(callback, ctypes.c_void_p).value, read)
    if custom_io(session, ours, session_fd(session)) != 0:
        log.warning("libfuse's first reply stays as it is")
        return None
    return callback
