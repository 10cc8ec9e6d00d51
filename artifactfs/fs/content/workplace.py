"""The folder in which filter commands run: it looks like the top of the working tree, a little.

Git runs them in the top of the working tree. A child of ours must not be there: the kernel may
hold a directory of the mount for another program until we have answered, while we wait for the
filter, which waits for that directory, in a sleep that no signal ends. So they run in a folder on
the disk with copies of what a filter is known to look for: ``.lfsconfig``, the files of the tree
that the command names (with what lies beside them in a folder), and nothing else.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.fs.inodes.inode import Directory, Inode
from artifactfs.fs.tree.tree import Tree
from artifactfs.git.objects.database import MissingObject

ALWAYS = (b".lfsconfig",)
MOST_FILES = 100
"""In a folder of which a command names a file: more, and only that file is copied."""
MOST_BYTES = 4 << 20
"""Of one file; larger ones are left out."""

Content = Callable[[Inode, bytes, int], Awaitable[bytes]]
"""The first bytes of the regular file at a path: as it is stored where it is clean."""


class FilterWorkplace:
    """Of one mount; made when the first filter runs, removed by `remove`."""

    def __init__(self, directory: Path, tree: Tree, content: Content) -> None:
        self.directory = directory
        self._tree = tree
        self._content = content
        self._copied: dict[bytes, tuple[object, ...]] = {}
        self._busy = trio.Lock()

    async def prepare(self, command: str) -> Path:
        """Bring the copies for `command` up to date.

        Waits for contents that are not here. Raises: OSError. What cannot be had is left out: the
        command says what it misses.
        """
        async with self._busy:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            for path in dict.fromkeys([*ALWAYS, *_paths_in(command)]):
                with suppress(ArtifactFSError, MissingObject, NotADirectoryError):
                    for place, inode in self._to_copy(path):
                        await self._copy(place, inode)
        return self.directory

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._copied.clear()

    def _to_copy(self, path: bytes) -> Iterator[tuple[bytes, Inode]]:
        """`path` and what lies beside it, as far as these are regular files."""
        *folders, name = path.split(b"/")
        directory: Inode | None = self._tree.root
        for folder in folders:
            if not isinstance(directory, Directory):
                return
            directory = self._tree.lookup(directory, folder)
        if not isinstance(directory, Directory) or self._tree.lookup(directory, name) is None:
            return
        names = self._tree.listing(directory) if folders else [name]
        prefix = b"/".join([*folders, b""]) if folders else b""
        for other in names if len(names) <= MOST_FILES else [name]:
            inode = self._tree.lookup(directory, other)
            if inode is not None and stat.S_ISREG(inode.mode):
                yield prefix + other, inode

    async def _copy(self, path: bytes, inode: Inode) -> None:
        data = inode.data
        key = (inode.ino, inode.mode, inode.oid, inode.size if data else 0, _changed_ns(inode))
        if self._copied.get(path) == key:
            return
        inode.pins += 1  # it stays in memory meanwhile
        try:
            content = await self._content(inode, path, MOST_BYTES + 1)
        finally:
            inode.pins -= 1
            self._tree.drop_if_unused(inode)
        if len(content) > MOST_BYTES:
            return
        target = self.directory / os.fsdecode(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{target.name[:200]}.new")
        draft.write_bytes(content)
        draft.chmod(0o700 if inode.mode & 0o100 else 0o600)
        draft.replace(target)
        self._copied[path] = key


def _changed_ns(inode: Inode) -> int:
    return inode.row.mtime_ns if inode.row is not None else 0


def _paths_in(command: str) -> Iterator[bytes]:
    """The words of a shell command that may be paths in the tree."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    for word in words:
        for part in (word, word.rpartition("=")[2]):
            path = os.path.normpath(part) if part else ""
            if path and path not in (".", "..") and not path.startswith(("/", "../", "-")):
                yield os.fsencode(path)
