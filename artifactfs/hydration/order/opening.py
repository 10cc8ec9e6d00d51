"""What is read first in a tree that was just cloned, to be fetched while it is being mounted.

Whoever mounts a repository lists it and looks at its README, or lets a tool look at its manifests;
and nothing can be read before the .gitattributes above it are known. All of these are in the root
directory, and one request fetches them in the time that the mount takes anyway.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from itertools import islice

from artifactfs.hydration.order.nearby import NearbyBlob, TreeReader, is_gitlink, read_tree
from artifactfs.hydration.order.priority import Priority, classify

MAX_FILES = 32
"""The bundled server sends so many without starting git, if they have at most 1 MB together."""
_LOOKED_AT = 10_000
_CLASSES = (Priority.GIT, Priority.MANIFEST)


def opening_files(
    tree: TreeReader, root: bytes, absent: Callable[[bytes], bool]
) -> list[NearbyBlob]:
    """The files of the tree `root` to fetch first, in that order: those of git, the README, then
    manifests."""
    found: list[tuple[bool, bool, NearbyBlob]] = []
    for entry in islice(read_tree(tree, root), _LOOKED_AT):
        if stat.S_ISDIR(entry.mode) or is_gitlink(entry.mode):
            continue
        priority = classify(entry.name, entry.mode, None)
        if priority in _CLASSES and absent(entry.oid):
            readme = entry.name.lower().startswith(b"readme")
            blob = NearbyBlob(entry.oid, entry.name, entry.mode)
            found.append((priority is not Priority.GIT, not readme, blob))
    found.sort(key=lambda item: item[:2])
    return [blob for *_, blob in found[:MAX_FILES]]
