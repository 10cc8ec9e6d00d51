"""Writes that the kernel takes: what a mount has to know of its upper folder.

``STATE/repos/NAME/native`` holds it: ``upper`` (what was written), ``work`` (overlayfs' own), and
``fsmonitor`` (`UpperJournal`). Our own mount, at ``STATE/repos/NAME/lower``, shows the base tree
alone and never changes; the kernel puts both together at the mount point. That the folder
``native`` is there says that this repository's writes are the kernel's.

A death of ours loses nothing that was written: the kernel holds it. What is not in the upper folder
is read through our mount, so it cannot be read until that is served again.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import stat
from collections.abc import Container, Iterator
from pathlib import Path

import trio

from artifactfs.errors import StateError
from artifactfs.fs.gitview.virtual import free_name
from artifactfs.fs.inodes.inode import Owner, mode_of_entry
from artifactfs.fs.native.journal import UpperJournal
from artifactfs.fs.native.marks import marks_of
from artifactfs.fs.native.view import MOST_COMPARED, File, Folder, View, join
from artifactfs.fs.tree.walk import LocalChange
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.pack.format import object_id
from artifactfs.paths import RepoLayout

GITFILE = b".git"

_KIND_AND_EXECUTABLE = stat.S_IFMT(0o777777) | 0o100

_ANOTHER_THING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
"""Why a path is not opened, or read, that was a regular file when it was listed."""

_Version = tuple[int, int, int]
"""Inode number, ctime in ns, and size: another one after each change."""


def is_native(layout: RepoLayout) -> bool:
    """Whether the kernel takes the writes of this repository."""
    return layout.native.is_dir()


def lost(layout: RepoLayout) -> StateError | None:
    """What is said where what was written is gone, though the kernel took the writes."""
    if layout.native_upper.is_dir() or not (is_native(layout) or layout.kernel_writes.exists()):
        return None
    gone = layout.native_upper if is_native(layout) else layout.native
    without = f"rm -rf {shlex.quote(str(layout.native))} {shlex.quote(str(layout.kernel_writes))}"
    return StateError(
        f"{gone} is missing: all that was written was in it",
        hint=f"restore it from a backup; to go on without it: {without}",
    )


def create_native(layout: RepoLayout, owner: Owner, mode: int) -> None:
    """Make an upper folder with nothing in it, whose top has that mode. Raises: OSError."""
    temporary = layout.native.with_name(".native.new")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folders(temporary, layout, owner, mode)
    temporary.rename(layout.native)


def make_folders(native: Path, layout: RepoLayout, owner: Owner, mode: int) -> None:
    """The same at another place. Raises: OSError."""
    native.mkdir(mode=0o700)
    (native / layout.native_work.name).mkdir(mode=0o700)
    upper = native / layout.native_upper.name
    upper.mkdir()
    if os.geteuid() == 0:
        os.chown(upper, owner.uid, owner.gid)
    upper.chmod(mode)


def hidden_names(names: Container[bytes]) -> tuple[bytes, ...]:
    """What is in the top of our mount and no part of the tree, which has `names` there."""
    return GITFILE, free_name(names)


class KernelWrites:
    """The upper folder of one mount. Everything here asks the disk, and no mount."""

    def __init__(
        self,
        layout: RepoLayout,
        odb: ObjectDatabase,
        base: Oid,
        owner: Owner,
        hidden: tuple[bytes, ...],
    ) -> None:
        """`hidden`: see `hidden_names`."""
        self._layout = layout
        self._odb = odb
        self._owner = owner
        self._base = base
        self._hidden = hidden
        index = layout.gitdir / "index"
        self.journal = UpperJournal(layout.native / "fsmonitor", self._view(), index)
        self._lock = trio.Lock()
        self._oids: dict[_Version, Oid] = {}
        """Of files that were compared with HEAD's."""
        self._committed: frozenset[_Version] = frozenset()

    def _view(self) -> View:
        return View(
            os.fsencode(self._layout.native_upper), self._odb.tree, self._base, self._hidden
        )

    @property
    def free_space(self) -> os.statvfs_result:
        return os.statvfs(self._layout.native_upper)

    async def look(self) -> None:
        """Before git is answered: see what has changed."""
        async with self._lock:
            await trio.to_thread.run_sync(self.journal.update)

    async def changes(self) -> list[LocalChange]:
        """Differences from the base. Raises: OSError, MissingObject, CorruptData."""
        return await trio.to_thread.run_sync(lambda: list(self._view().changes(self._equals)))

    async def measure(self) -> tuple[int, int]:
        """How many files have data in the upper folder, and their size, without those that were
        HEAD's when they were compared."""
        return await trio.to_thread.run_sync(self._measure)

    def _measure(self) -> tuple[int, int]:
        files = size = 0
        committed = self._committed
        for _, found in _regular_files(os.fsencode(self._layout.native_upper)):
            if not committed or _version(found) not in committed:
                files += 1
                size += found.st_size
        return files, size

    async def compare(self, head: Oid | None) -> int:
        """See which files are as in the tree `head`. Returns how many."""
        return await trio.to_thread.run_sync(self._compare, head)

    def _compare(self, head: Oid | None) -> int:
        """Raises: OSError, MissingObject, CorruptData."""
        oids: dict[_Version, Oid] = {}
        committed = set()
        upper = os.fsencode(self._layout.native_upper)
        view = View(upper, self._odb.tree, head or self._base, self._hidden)
        tracked = []
        for path, found in _regular_files(upper) if head is not None else ():
            entry = view.at(path[len(upper) + 1 :])
            if entry and not (mode_of_entry(entry.mode) ^ found.st_mode) & _KIND_AND_EXECUTABLE:
                tracked.append((path, found, entry.oid))
        absent = set(self._odb.missing(expected for _, _, expected in tracked))
        for path, found, expected in tracked:
            version = _version(found)
            oid = self._oids.get(version)
            if oid is None and expected not in absent:
                oid = self._oid_of(path, found, expected)
            if oid is not None:
                oids[version] = oid
            if oid == expected:
                committed.add(version)
        self._oids, self._committed = oids, frozenset(committed)
        return len(committed)

    def _oid_of(self, path: bytes, found: os.stat_result, expected: Oid) -> Oid | None:
        """None where that need not be known: it cannot be the expected blob, or is large."""
        size = found.st_size
        if size > MOST_COMPARED or self._odb.header_size(expected) != size:
            return None
        try:
            with open(path, "rb", opener=_open_file) as opened:
                return object_id("blob", opened.read())
        except OSError as error:
            if error.errno in _ANOTHER_THING:
                return None
            raise

    def _equals(self, file: bytes, oid: Oid, size: int) -> bool:
        if self._odb.header_size(oid) != size:
            return False
        with open(file, "rb") as opened:
            return object_id("blob", opened.read()) == oid

    # What is made before the mount

    def make_folder(self, path: bytes) -> None:
        """A folder in the tree, with those above it where they are not there. Raises: OSError."""
        view = self._view()
        folder, upper = view.top, os.fsencode(self._layout.native_upper)
        for name in path.split(b"/") if path else ():
            upper = upper + b"/" + name
            node = view.children(folder).get(name)
            if isinstance(node, File):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if node is None or node.upper is None:
                self._mkdir(upper, opaque=node is None)
                node = Folder(
                    join(folder.path, name),
                    upper,
                    node.lower if node is not None else None,
                    node.tree if node is not None else None,
                )
            folder = node

    def _mkdir(self, upper: bytes, *, opaque: bool) -> None:
        """Where a whiteout was, the new folder must not show what was removed."""
        was_removed = os.path.lexists(upper)
        if was_removed:
            os.unlink(upper)
        os.mkdir(upper, 0o755)
        if opaque and was_removed:
            os.setxattr(upper, "trusted.overlay.opaque", b"y")
        os.chown(upper, self._owner.uid, self._owner.gid)

    def make_link(self, path: bytes, target: str) -> None:
        """The same for a symlink, in place of an empty folder if there is one. Raises: OSError."""
        self.make_folder(os.path.dirname(path))
        upper = os.path.join(os.fsencode(self._layout.native_upper), path)
        if os.path.islink(upper) and os.readlink(upper) == os.fsencode(target):
            return
        if os.path.isdir(upper) and not os.path.islink(upper):
            os.rmdir(upper)
        elif os.path.lexists(upper):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        os.symlink(target, upper)
        os.lchown(upper, self._owner.uid, self._owner.gid)


def count_entries(layout: RepoLayout) -> int:
    """How many names the upper folder has, without what lies in folders that are new: a few are as
    good as many for who only asks whether there are any. Raises: OSError."""
    with os.scandir(layout.native_upper) as found:
        return sum(1 for one in found if os.fsencode(one.name) != GITFILE)


def _is_below(path: bytes) -> bool:
    """Whether the data of a written file is in the base tree."""
    return marks_of(path).metacopy


def _version(found: os.stat_result) -> _Version:
    return found.st_ino, found.st_ctime_ns, found.st_size


def _open_file(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _regular_files(upper: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Those with data of their own, each once."""
    stack, seen = [upper], set()
    while stack:
        try:
            with os.scandir(stack.pop()) as found:
                for one in found:
                    if one.is_dir(follow_symlinks=False):
                        stack.append(one.path)
                    elif one.is_file(follow_symlinks=False):
                        status = one.stat(follow_symlinks=False)
                        if status.st_nlink > 1 and status.st_ino in seen:
                            continue
                        seen.add(status.st_ino)
                        if not _is_below(one.path):
                            yield one.path, status
        except (FileNotFoundError, NotADirectoryError):
            continue
