"""Removes upper files that no row names, after an unclean end.

Such files are left when the process dies between making a file and committing its row, and by
files that were open when their last name was removed.
"""

from __future__ import annotations

import trio

from artifactfs.fs.content.contents import Contents
from artifactfs.fs.tree.tree import Tree

_AT_ONCE = 200


async def sweep_orphans(tree: Tree, contents: Contents) -> int:
    """Remove them, a few at a time between requests. Returns how many there were."""
    count = 0
    for number, (ino, is_draft) in enumerate(await trio.to_thread.run_sync(tree.upper.stored)):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        if contents.is_copying(ino):
            continue
        if is_draft:
            tree.upper.discard_draft(ino)
        elif _is_named(tree, ino):
            continue
        else:
            tree.upper.remove(ino)
        count += 1
    return count


def _is_named(tree: Tree, ino: int) -> bool:
    inode = tree.find(ino)
    if inode is None:
        return tree.overlay.has_upper(ino)
    return inode.extent is None
