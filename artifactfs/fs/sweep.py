"""Removes upper files that no row names, after an unclean end.

Such files are left when the process dies between making a file and committing its row, and by
files that were open when their last name was removed.
"""

from __future__ import annotations

import trio

from artifactfs.fs.contents import Contents
from artifactfs.fs.tree import Tree

_AT_ONCE = 200


async def sweep_orphans(tree: Tree, contents: Contents) -> int:
    """Remove them, a few at a time between requests. Returns how many there were."""
    names = await trio.to_thread.run_sync(lambda: list(tree.upper.names()))
    count = 0
    for number, name in enumerate(names):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        digits, _, suffix = name.partition(".")
        if not digits.isdecimal() or _is_in_use(tree, contents, int(digits), suffix):
            continue
        tree.upper.remove_name(name)
        count += 1
    return count


def _is_in_use(tree: Tree, contents: Contents, ino: int, suffix: str) -> bool:
    if contents.is_copying(ino):
        return True
    return not suffix and (tree.find(ino) is not None or tree.overlay.has_data(ino))
