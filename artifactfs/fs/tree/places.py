"""Folders and symlinks that a mount's own process makes in its tree, before the kernel has it.

By the tree itself: through the mount it would ask itself, and wait for its own answer.
"""

from __future__ import annotations

import errno
import os
import stat

from artifactfs.fs.inodes.inode import Directory
from artifactfs.fs.kernel.refusal import fail
from artifactfs.fs.tree.mutations import Mutations
from artifactfs.fs.tree.tree import Tree


def make_folder(tree: Tree, mutations: Mutations, path: bytes) -> Directory:
    """The folder at `path`, made with those above it where they are not there.

    Symlinks are not followed, wherever they lead. Raises: OSError, MissingObject.
    """
    directory = tree.root
    for name in path.split(b"/") if path else ():
        found = tree.lookup(directory, name)
        if found is None:
            found = mutations.mkdir(directory, name, 0o755, tree.owner)
        if not isinstance(found, Directory):
            fail(errno.ENOTDIR)
        directory = found
    return directory


def make_link(tree: Tree, mutations: Mutations, path: bytes, target: str) -> None:
    """A symlink at `path`, in place of an empty folder if there is one.

    Raises: OSError, MissingObject.
    """
    parent, _, name = path.rpartition(b"/")
    directory = make_folder(tree, mutations, parent)
    found = tree.lookup(directory, name)
    if found is not None and stat.S_ISLNK(found.mode):
        if found.row is not None and found.row.target == os.fsencode(target):
            return
        fail(errno.EEXIST)
    if found is not None:
        mutations.rmdir(directory, name)
    mutations.symlink(directory, name, os.fsencode(target), tree.owner)
