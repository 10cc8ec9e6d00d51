"""Open files and directories. The number of a handle is its key in `Handles`."""

from __future__ import annotations

from typing import Generic, TypeVar

from artifactfs.fs.inodes import Directory, Inode
from artifactfs.git.objects import Oid
from artifactfs.hydration.blobs import Blob


class FileHandle:
    """One open file. `pid` is the process that opened it."""

    __slots__ = ("blob", "inode", "oid", "pid")

    def __init__(self, inode: Inode, pid: int) -> None:
        self.inode = inode
        self.pid = pid
        self.blob: Blob | None = None
        self.oid: Oid | None = None

    def keep(self, oid: Oid, blob: Blob) -> None:
        """Read from `blob`, the content of `oid`, from now on."""
        if self.blob is not None and self.blob is not blob:
            self.blob.close()
        self.oid = oid
        self.blob = blob

    def drop_blob(self) -> None:
        if self.blob is not None:
            self.blob.close()
            self.blob = None


class VirtualHandle:
    """An open virtual file: its content is fixed when it is opened."""

    __slots__ = ("content",)

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        """None: to be asked for when it is read (it may have to wait)."""


class DirectoryHandle:
    """An open directory: its names as they were when it was (re)wound."""

    __slots__ = ("directory", "names")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.names: list[bytes] | None = None


H = TypeVar("H")


class Handles(Generic[H]):
    """Handles by number."""

    def __init__(self) -> None:
        self._open: dict[int, H] = {}
        self._next = 1

    def add(self, handle: H) -> int:
        number = self._next
        self._next += 1
        self._open[number] = handle
        return number

    def __getitem__(self, number: int) -> H:
        return self._open[number]

    def remove(self, number: int) -> H:
        return self._open.pop(number)

    def __len__(self) -> int:
        return len(self._open)
