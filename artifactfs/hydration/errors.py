"""What a reader of content that is not here yet can be told."""

from __future__ import annotations

import errno

from artifactfs.errors import ArtifactFSError


class HydrationError(ArtifactFSError):
    """Content could not be brought here. `errno` is what the reading program gets."""

    errno: int = errno.EIO


class HydrationTimeout(HydrationError):
    """The deadline passed while the content was still on its way, or the remote was retried."""

    errno = errno.ETIMEDOUT


class HydrationFailed(HydrationError):
    """The remote refused, lacks the object, is known to be down, or sent damaged data."""

    errno = errno.EIO
