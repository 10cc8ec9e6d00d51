"""What is open below the files of the mount: descriptors of upper files, and blobs.

The kernel opens and closes files by itself (see `extension`) and tells nobody, so both are kept
for a while: descriptors those that were opened last, blobs until they were read to their end, or
not read for some seconds.
"""

from __future__ import annotations

import os

from artifactfs.fs.inodes.inode import Data, Inode
from artifactfs.fs.overlay.upper import Upper
from artifactfs.git.objects.database import Oid
from artifactfs.hydration.local.blobs import Blob

DESCRIPTORS_KEPT = 256
"""Programs work on few files at a time, and opening an upper file again costs 3 µs."""

BLOBS_KEPT = 64
"""An open blob is up to 1 MiB of memory, or a descriptor and a lock that eviction respects."""


class Opened:
    """Open upper files (their descriptor is in `Data.fd`) and open blobs, by inode."""

    def __init__(self, upper: Upper) -> None:
        self._upper = upper
        self._files: dict[Data, None] = {}
        self._blobs: dict[int, tuple[Oid, Blob]] = {}
        self._idle: set[int] = set()

    # Upper files

    def open(self, ino: int, data: Data) -> int:
        """The descriptor of the upper file of `ino`. Raises: OSError."""
        if data.fd < 0:
            data.fd = self._upper.open(ino)
            self.keep(data)
        return data.fd

    def keep(self, data: Data) -> None:
        """Take charge of a descriptor that was just put into `data`."""
        self._files[data] = None
        if len(self._files) > DESCRIPTORS_KEPT:
            self.close(next(iter(self._files)))

    def close(self, data: Data) -> None:
        if data.fd >= 0:
            os.close(data.fd)
            data.fd = -1
            self._files.pop(data, None)

    # Blobs

    def blob(self, ino: int, oid: Oid | None) -> Blob | None:
        """The blob `oid`, if it was opened for `ino`."""
        kept = self._blobs.get(ino)
        if kept is None or kept[0] != oid:
            return None
        self._idle.discard(ino)
        return kept[1]

    def keep_blob(self, ino: int, oid: Oid, blob: Blob) -> None:
        self.close_blob(ino)
        self._blobs[ino] = oid, blob
        if len(self._blobs) > BLOBS_KEPT:
            self.close_blob(next(iter(self._blobs)))

    def close_blob(self, ino: int) -> None:
        kept = self._blobs.pop(ino, None)
        if kept is not None:
            self._idle.discard(ino)
            kept[1].close()

    def close_idle(self) -> None:
        """Close the blobs that were not asked for since this was called last."""
        for ino in list(self._idle):
            self.close_blob(ino)
        self._idle = set(self._blobs)

    # Both

    def forget(self, inode: Inode) -> None:
        """Nobody refers to `inode` any more."""
        if inode.data is not None:
            self.close(inode.data)
        else:
            self.close_blob(inode.ino)

    def close_all(self) -> None:
        for data in list(self._files):
            self.close(data)
        for ino in list(self._blobs):
            self.close_blob(ino)
