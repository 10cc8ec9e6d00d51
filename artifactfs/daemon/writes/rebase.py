"""Moves the base tree of an upper folder to HEAD, between two mounts.

While overlayfs is mounted the tree below must not change, so what git checks out stays in the upper
folder, though it equals blobs of the remote. Before the next mount another upper folder is built
beside, over the tree of HEAD: written files are links to the same inodes, what equals HEAD's blobs
is left out. Then the two change places at once, with the record of the new base in it (`record`).

Only commits that came from the remote can be a base, since others may be thrown away and pruned;
and only if git's index agrees with HEAD: else it might take another content for the one it knows.
What cannot be said over the new tree (a file that was never written and is another one there) ends
the attempt: then everything stays as it is.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifactfs.daemon.writes import record
from artifactfs.fs.inodes.inode import Owner, mode_of_entry
from artifactfs.fs.inodes.listings import base_tree_of, is_directory_entry
from artifactfs.fs.native.marks import OWN_PREFIX, REDIRECT
from artifactfs.fs.native.view import File, Folder, View, places_of_trees
from artifactfs.fs.native.writes import hidden_names, make_folders
from artifactfs.fs.tree.compaction import PromisedObjects
from artifactfs.git.objects.database import ObjectDatabase, Oid, TreeEntry
from artifactfs.git.pack.format import object_id
from artifactfs.paths import RepoLayout
from artifactfs.system.files import sync_everything, sync_path

log = logging.getLogger(__name__)

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE


class Unmovable(Exception):
    """What is in the upper folder cannot be said over the new tree."""


def rebase(
    layout: RepoLayout, odb: ObjectDatabase, meta: Mapping[str, Any], owner: Owner, commit: Oid
) -> bool:
    """Make `commit` the base, if that can be; whether it was. `meta` is that of the overlay.

    Blocks. Raises: OSError, MissingObject, CorruptData; then everything is as it was.
    """
    old, new = meta["base_tree"], odb.commit(commit).tree
    promised = PromisedObjects(layout.gitdir)
    names = {entry.name for entry in odb.tree(new)}
    hidden = hidden_names({entry.name for entry in odb.tree(old)})
    if commit not in promised or hidden != hidden_names(names):
        return False
    temporary = layout.native.with_name(".native.new")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folders(temporary, layout, owner, 0o700)
    upper = os.fsencode(layout.native_upper)
    builder = _Builder(View(upper, odb.tree, old, hidden), odb, promised, owner, new)
    try:
        builder.run(os.fsencode(temporary / layout.native_upper.name))
    except Unmovable as error:
        log.info("the base stays at the commit that was mounted: %s", error)
        shutil.rmtree(temporary)
        return False
    record.write(temporary, {**meta, "base_commit": commit, "base_tree": new})
    sync_everything(temporary)
    _exchange(temporary, layout.native)
    sync_path(layout.directory)
    record.finish_move_in(layout, owner)
    shutil.rmtree(temporary)
    log.info("the base is HEAD", extra={"dropped": builder.dropped})
    return True


class _Builder:
    """Says over the tree `new` what `view` shows."""

    def __init__(
        self, view: View, odb: ObjectDatabase, promised: PromisedObjects, owner: Owner, new: Oid
    ) -> None:
        self._view = view
        self._odb = odb
        self._promised = promised
        self._owner = owner
        self._new = new
        self._places: dict[Oid, bytes] | None = None
        self.dropped = 0

    def run(self, target: bytes) -> None:
        top = self._view.top
        assert top.upper is not None
        self._fill(top, self._new, target)
        _dress(top.upper, target)

    def _fill(self, folder: Folder, shown: Oid | None, target: bytes | None) -> None:
        """`shown` is the tree that shows by itself; without a `target` nothing may be written."""
        before = self._view.entries(shown)
        now = self._view.children(folder)
        for name in sorted({*now, *before}):
            node, entry = now.get(name), before.get(name)
            path = target + b"/" + name if target is not None else None
            if isinstance(node, Folder):
                self._folder(node, entry, path)
            elif node is not None:
                self._file(node, entry, path)
            else:
                os.mknod(_writable(path, folder.path), stat.S_IFCHR, os.makedev(0, 0))

    def _file(self, file: File, entry: TreeEntry | None, path: bytes | None) -> None:
        if file.upper is None:
            if entry is None or file.entry is None or entry[1:] != file.entry[1:]:
                raise Unmovable(f"{os.fsdecode(file.path)} is not as in HEAD")
            return
        found = os.lstat(file.upper)
        if entry is not None and self._is_clean(file, found, entry):
            self.dropped += 1
            return
        if file.entry is not None and (
            file.lower != file.path or entry is None or entry.oid != file.entry.oid
        ):
            raise Unmovable(f"the data of {os.fsdecode(file.path)} is not in HEAD")
        os.link(file.upper, _writable(path, file.path), follow_symlinks=False)

    def _is_clean(self, file: File, found: os.stat_result, entry: TreeEntry) -> bool:
        """Whether it is what the base shows, and the remote has it."""
        assert file.upper is not None
        mode = mode_of_entry(entry.mode)
        if stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode) or found.st_nlink > 1:
            return False
        if (found.st_uid, found.st_gid) != (self._owner.uid, self._owner.gid):
            return False
        if stat.S_ISLNK(mode):
            return object_id("blob", os.readlink(file.upper)) == entry.oid
        if not stat.S_ISREG(mode) or stat.S_IMODE(found.st_mode) != stat.S_IMODE(mode):
            return False
        names = os.listxattr(file.upper, follow_symlinks=False)
        if any(not name.startswith(OWN_PREFIX) for name in names):
            return False
        if file.entry is not None:
            return file.entry.oid == entry.oid
        if entry.oid not in self._promised or self._odb.header_size(entry.oid) != found.st_size:
            return False
        with open(file.upper, "rb") as opened:
            return object_id("blob", opened.read()) == entry.oid

    def _folder(self, folder: Folder, entry: TreeEntry | None, path: bytes | None) -> None:
        is_folder = entry is not None and is_directory_entry(entry)
        below = base_tree_of(entry) if entry is not None and is_folder else None
        if folder.upper is None:
            if is_folder and folder.tree == below:
                return
            if is_folder:
                self._fill(folder, below, None)
                return
            raise Unmovable(f"{os.fsdecode(folder.path)} is not in HEAD")
        place = _writable(path, folder.path)
        os.mkdir(place)
        shown = below
        was_moved = not is_folder or folder.lower != folder.path
        if folder.tree is not None and folder.tree != below and was_moved:
            elsewhere = self._place_of(folder.tree)
            if elsewhere is not None and elsewhere != folder.path:
                os.setxattr(place, REDIRECT, b"/" + elsewhere)
                shown = folder.tree
        self._fill(folder, shown, place)
        _dress(folder.upper, place)
        if is_folder and shown == below and self._is_plain(place):
            os.rmdir(place)

    def _is_plain(self, place: bytes) -> bool:
        """Whether an upper folder says nothing: no name, and no other attributes than below."""
        found = os.lstat(place)
        own = (self._owner.uid, self._owner.gid, 0o755)
        same = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == own
        return same and not os.listdir(place) and not os.listxattr(place)

    def _place_of(self, tree: Oid) -> bytes | None:
        """Where the new base has such a folder."""
        if self._places is None:
            self._places = places_of_trees(lambda oid: self._view.entries(oid).values(), self._new)
        return self._places.get(tree)


def _writable(path: bytes | None, what: bytes) -> bytes:
    """Raises: Unmovable where a folder that nobody has written to would have to hold something."""
    if path is None:
        raise Unmovable(f"{os.fsdecode(what)} is not as in HEAD")
    return path


def _dress(source: bytes, target: bytes) -> None:
    """Owner, mode, attributes and times of a folder."""
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith(OWN_PREFIX):
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places at once (renameat2(2)). Raises: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
