"""What a request is told that may not be done: POSIX' errno for the case, and no fault of ours."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

_OF_OUR_FILES = frozenset(
    {
        errno.EACCES,
        errno.EBADF,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOTCONN,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,
        errno.ESPIPE,
        errno.ESTALE,
    }
)
"""Errors of our own files that would say something untrue of the program's."""


class Refused(OSError):
    """The request cannot be granted, and its errno says why."""


def fail(number: int) -> NoReturn:
    """Raise the Refused of `number`."""
    raise Refused(number, os.strerror(number))


def errno_of(error: OSError) -> int:
    """What the program is told. An error of the files below is EIO where its own number would be
    understood as one of the name that was asked for: above all, nothing is absent because its data
    is."""
    number = error.errno or errno.EIO
    if isinstance(error, (Refused, InterruptedError)) or number not in _OF_OUR_FILES:
        return number
    return errno.EIO
