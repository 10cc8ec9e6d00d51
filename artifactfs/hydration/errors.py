"""What a reader of content that is not here yet can be told."""

from __future__ import annotations

import errno

from artifactfs.errors import ArtifactFSError


class HydrationError(ArtifactFSError):
    """Content could not be fetched. `errno` is what the reading program gets."""

    errno: int = errno.EIO


class HydrationTimeout(HydrationError):
    """The deadline passed while the content was still on its way, or the remote was retried."""

    errno = errno.ETIMEDOUT


class HydrationFailed(HydrationError):
    """The remote refused, lacks the object, is known to be down, or sent damaged data."""

    errno = errno.EIO

    @property
    def disk_full(self) -> bool:
        """Whether the reason is that the cache's disk, or its quota, is full."""
        return self.errno in _FULL


_FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_failure(error: OSError) -> HydrationFailed:
    """What a reader gets when the cache cannot be written; a full disk stays a full disk."""
    failure = HydrationFailed(f"the cache cannot be written: {error.strerror or error}")
    failure.errno = error.errno if error.errno in _FULL else errno.EIO
    return failure


def copy_of(error: HydrationError) -> HydrationError:
    """The same error for another reader: an exception must not be raised in two tasks."""
    copied = type(error)(error.message, hint=error.hint)
    copied.errno = error.errno
    return copied
