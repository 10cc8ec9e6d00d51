"""A mount that nobody can serve: every request is answered with EIO, so that no program hangs.

This process knows nothing of a repository, so what ended the others does not end it.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress

from artifactfs.fs.kernel.handover import RESEND

_HEADER = struct.Struct("<IIQ")
"""The beginning of ``struct fuse_in_header``: length, operation, number of the request."""
_ANSWER = struct.Struct("<IiQ")
_UNANSWERED = frozenset((2, 36, 42))
"""FUSE_FORGET, FUSE_INTERRUPT and FUSE_BATCH_FORGET (linux/fuse.h)."""
_LARGEST = (1 << 20) + (1 << 16)
"""Bytes of a request: a write of 1 MiB, and its header."""


def refuse(device: int) -> int:
    """Answer until the mount has ended. Returns the exit status of the process."""
    with suppress(OSError):
        os.write(device, RESEND)
    while True:
        try:
            request = os.read(device, _LARGEST)
        except (FileNotFoundError, InterruptedError):
            continue  # it was interrupted before it was read
        except OSError:
            return 0  # ENODEV: unmounted
        _length, operation, unique = _HEADER.unpack_from(request)
        if operation not in _UNANSWERED:
            with suppress(OSError):  # it was interrupted meanwhile
                os.write(device, _ANSWER.pack(_ANSWER.size, -errno.EIO, unique))
