"""The data of written files: ``upper/INO``, one file for each inode.

The upper directory is locked while it is in use, so that no two processes serve one overlay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from artifactfs.errors import StateError

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Upper:
    """The directory of upper files. Calls are short enough for the event loop but `sync`."""

    def __init__(self, path: Path) -> None:
        """Raises: StateError where another process has it."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise StateError(
                f"{path} is in use by another process", hint="is another daemon running?"
            ) from None

    def create(self, ino: int) -> int:
        """Make an empty file for `ino` and return its descriptor."""
        return os.open(str(ino), _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self._fd)

    def create_draft(self, ino: int) -> int:
        """Make a file that becomes the data of `ino` by `publish`."""
        return os.open(f"{ino}.new", _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self._fd)

    def publish(self, ino: int) -> None:
        os.rename(f"{ino}.new", str(ino), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def discard_draft(self, ino: int) -> None:
        self._remove(f"{ino}.new")

    def open(self, ino: int) -> int:
        """Raises: OSError (the file is gone: the state root was tampered with)."""
        return os.open(str(ino), _FLAGS, dir_fd=self._fd)

    def stat(self, ino: int) -> os.stat_result:
        return os.stat(str(ino), dir_fd=self._fd)

    def set_mtime(self, ino: int, mtime_ns: int) -> None:
        os.utime(str(ino), ns=(mtime_ns, mtime_ns), dir_fd=self._fd)

    def truncate(self, ino: int, size: int) -> None:
        fd = self.open(ino)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def remove(self, ino: int) -> None:
        self._remove(str(ino))

    def sync(self) -> None:
        """Make the names of new files survive power loss. Blocks: call it in a thread."""
        os.fsync(self._fd)

    def names(self) -> Iterator[str]:
        """Names of all files. Blocks on large directories: call it in a thread."""
        with os.scandir(self._fd) as entries:
            for entry in entries:
                yield entry.name

    def total_bytes(self) -> int:
        """Size of all files. Blocks on large directories: call it in a thread."""
        total = 0
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(name, dir_fd=self._fd).st_size
        return total

    def remove_name(self, name: str) -> None:
        self._remove(name)

    def free_space(self) -> os.statvfs_result:
        return os.fstatvfs(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)
