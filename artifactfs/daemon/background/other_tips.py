"""Sizes of what other branches and releases have, learnt before somebody switches to one.

`artifact-fs switch` needs the sizes of the files that differ, and would wait for the remote to tell
them. Which blobs those are follows from trees, which are here once history is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import trio

from artifactfs.errors import CorruptData
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.objects.database import MissingObject, ObjectDatabase, Oid
from artifactfs.git.objects.tree_diff import diff_trees
from artifactfs.git.repository.refs import read_refs
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.hydration.order.nearby import is_gitlink

log = logging.getLogger(__name__)

MAX_TIPS = 8
"""Branches and tags, those with the newest commits."""
MAX_BLOBS = 20_000
"""In all: 1 MB of questions, 1 MB of answers."""
AFTER_S = 1.0
"""The commands that come first in a new mount have the machine for themselves."""
GIVE_WAY_S = 10.0


async def learn_sizes(
    gitdir: Path, odb: ObjectDatabase, filesystem: FileSystem, hydrator: Hydrator
) -> None:
    """Learn them, newest tips first. Waits for the network as long as it takes."""
    await filesystem.index_ready.wait()
    await trio.sleep(AFTER_S)
    base = filesystem.base.tree
    tips = await trio.to_thread.run_sync(_newest_trees, odb, gitdir)
    asked: set[Oid] = set()
    for tree in tips:
        await hydrator.give_way(GIVE_WAY_S)
        blobs = await trio.to_thread.run_sync(_blobs_that_differ, odb, base, tree)
        blobs -= asked
        if len(asked) + len(blobs) > MAX_BLOBS:
            continue  # another may be nearer
        asked |= blobs
        await hydrator.learn_sizes(sorted(blobs))
    log.debug("sizes of %d blobs of other branches and tags are known", len(asked))


def _newest_trees(odb: ObjectDatabase, gitdir: Path) -> list[Oid]:
    """The trees of `MAX_TIPS` refs, each once; refs whose commits are not here are passed over."""
    found: dict[Oid, int] = {}
    for oid in set(read_refs(gitdir).values()):
        try:
            commit = odb.commit(oid)
        except (MissingObject, CorruptData):
            continue
        found[commit.tree] = max(commit.commit_time, found.get(commit.tree, 0))
    return sorted(found, key=lambda tree: -found[tree])[:MAX_TIPS]


def _blobs_that_differ(odb: ObjectDatabase, base: Oid, tree: Oid) -> set[Oid]:
    """Blobs of `tree` that are not the same in `base`, more than `MAX_BLOBS` where there are too
    many; none where trees are missing."""
    try:
        return set(islice(_new_blobs(odb, base, tree), MAX_BLOBS + 1))
    except (MissingObject, CorruptData):
        return set()


def _new_blobs(odb: ObjectDatabase, base: Oid, tree: Oid) -> Iterable[Oid]:
    for change in diff_trees(odb, base, tree):
        if change.after is not None and not is_gitlink(change.after.mode):
            yield change.after.oid
