"""The data of written files: ``upper/XX/INO``, one file for each inode.

What a program has written is in the kernel's page cache: it outlives our process, but not a loss of
power. ``fsync`` is for that.

XX are 8 bits of the number, the same for 512 numbers in a row: ext4 looks for a free inode near the
directory, which takes five times as long once there are thousands in one (60 µs against 13).

The upper directory is locked while it is in use, so that no two processes serve one overlay.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from artifactfs.errors import StateError
from artifactfs.fs.inodes.seals import Seal, seal_of
from artifactfs.system.locks import try_lock

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_DRAFT = ".new"


class Upper:
    """The directory of upper files. Calls are short enough for the event loop but `sync`,
    `sync_file`, `stored` and `total_bytes`."""

    def __init__(self, path: Path) -> None:
        """Raises: StateError where another process has it."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._names_made: dict[str, int] = {}
        """By folder: how many names had been made in all when it got its last one."""
        self._names_synced: dict[str, int] = {}
        """The same of what is on the disk."""
        self._made = 0
        if not try_lock(self._fd):
            os.close(self._fd)
            raise StateError(
                f"{path} is in use by another process", hint="is another daemon running?"
            )

    def file(self, ino: int) -> Path:
        """Where the data of `ino` is."""
        return self.path / _name(ino)

    def create_draft(self, ino: int) -> int:
        """Make a file that becomes the data of `ino` by `publish`."""
        name = _name(ino) + _DRAFT
        flags = _FLAGS | os.O_CREAT | os.O_TRUNC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        except FileNotFoundError:
            os.mkdir(_folder(ino), 0o700, dir_fd=self._fd)
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        self._note_name(ino)
        return fd

    def _note_name(self, ino: int) -> None:
        self._made += 1
        self._names_made[_folder(ino)] = self._made

    def publish(self, ino: int) -> None:
        name = _name(ino)
        os.rename(name + _DRAFT, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        self._note_name(ino)

    def discard_draft(self, ino: int) -> None:
        self._remove(_name(ino) + _DRAFT)

    def open(self, ino: int) -> int:
        """Raises: OSError (FileNotFoundError: it was lost)."""
        return os.open(_name(ino), _FLAGS, dir_fd=self._fd)

    def stat(self, ino: int) -> os.stat_result:
        return os.stat(_name(ino), dir_fd=self._fd)

    def exists(self, ino: int) -> bool:
        try:
            self.stat(ino)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def set_mtime(self, ino: int, mtime_ns: int) -> None:
        os.utime(_name(ino), ns=(mtime_ns, mtime_ns), dir_fd=self._fd)

    def sync_file(self, ino: int) -> Seal | None:
        """Make the data of `ino` survive power loss; returns what it was before. None where it
        is gone, removed or given up for a blob meanwhile. Blocks: call it in a thread."""
        return self.seal(ino, content=False, synced=True)

    def seal(self, ino: int, *, content: bool, synced: bool) -> Seal | None:
        """What the upper file of `ino` is now; None where it is gone. With `content` reads all of
        it, with `synced` syncs it: call it in a thread. Raises: OSError."""
        try:
            fd = self.open(ino)
        except FileNotFoundError:
            return None
        try:
            sealed = seal_of(fd, content=content, synced=synced)
            if synced:
                os.fsync(fd)
        finally:
            os.close(fd)
        return sealed

    def remove(self, ino: int) -> None:
        self._remove(_name(ino))

    def sync(self) -> None:
        """Make the names of new files survive power loss. Blocks: call it in a thread.

        Several threads may: a folder counts as synced only when its sync has ended, so that none
        returns before it is true.
        """
        made, synced = self._names_made.copy(), self._names_synced
        folders = {folder: n for folder, n in made.items() if n > synced.get(folder, 0)}
        for folder in [*folders, "."] if folders else ():
            with contextlib.suppress(FileNotFoundError):  # the folder was lost with its files
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        for folder, number in folders.items():
            synced[folder] = max(number, synced.get(folder, 0))

    def stored(self) -> list[tuple[int, bool]]:
        """Number of every file, and whether it is a draft. Takes long: call it in a thread."""
        found = []
        for name in self._files():
            digits = name.rpartition("/")[2].removesuffix(_DRAFT)
            if digits.isdecimal():
                found.append((int(digits), name.endswith(_DRAFT)))
        return found

    def sizes(self) -> dict[int, int]:
        """Size of every file, by number. Takes long: call it in a thread."""
        found = {}
        for name in self._files():
            digits = name.rpartition("/")[2]
            if digits.isdecimal():
                with contextlib.suppress(FileNotFoundError):
                    found[int(digits)] = os.stat(name, dir_fd=self._fd).st_size
        return found

    def total_bytes(self) -> int:
        """Size of all files. Takes long: call it in a thread."""
        total = 0
        for name in self._files():
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(name, dir_fd=self._fd).st_size
        return total

    def free_space(self) -> os.statvfs_result:
        return os.fstatvfs(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _files(self) -> Iterator[str]:
        for folder in sorted(os.listdir(self._fd)):
            with contextlib.suppress(NotADirectoryError, FileNotFoundError):
                for name in os.listdir(self.path / folder):
                    yield f"{folder}/{name}"

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)


def _folder(ino: int) -> str:
    return f"{ino >> 9 & 255:02x}"


def _name(ino: int) -> str:
    return f"{ino >> 9 & 255:02x}/{ino}"
