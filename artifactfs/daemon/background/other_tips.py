"""Sizes of what other branches and releases have, learnt before somebody switches to one.

`artifact-fs switch` needs the sizes of the files that differ, and would wait for the remote to tell
them. Which blobs those are follows from trees, which are here once history is. Git compares them: a
thread of ours would take the interpreter from whoever uses the mount, for some 0.1 s a tip.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.command import GitFailed, feed_git, run_git
from artifactfs.git.objects.database import Oid
from artifactfs.git.objects.raw_diff import DIFF_TREES, blob_changes
from artifactfs.git.repository.refs import read_refs
from artifactfs.hydration.hydrator import Hydrator

log = logging.getLogger(__name__)

MAX_TIPS = 8
"""Different trees of branches and tags, the newest ones."""
MAX_REFS = 200
"""Branches and tags among which these are looked for."""
MAX_BLOBS = 20_000
"""In all: 1 MB of questions, 1 MB of answers."""
MAX_PRINTED = 200 * MAX_BLOBS
"""Bytes: git prints some 150 for each blob."""
AFTER_S = 1.0
"""The commands that come first in a new mount have the machine for themselves."""
GIVE_WAY_S = 10.0


async def learn_sizes(gitdir: Path, filesystem: FileSystem, hydrator: Hydrator) -> None:
    """Learn them, newest tips first. Waits for the network as long as it takes."""
    await filesystem.index_ready.wait()
    await trio.sleep(AFTER_S)
    base = filesystem.base.tree
    asked: set[Oid] = set()
    try:
        tips = await newest_trees(gitdir)
    except GitFailed as error:
        log.info("sizes of other branches and tags are not learnt: %s", error)
        return
    for tree in tips:
        await hydrator.give_way(GIVE_WAY_S)
        blobs = await blobs_that_differ(gitdir, base, tree) - asked
        if len(asked) + len(blobs) > MAX_BLOBS:
            continue  # another may be nearer
        asked |= blobs
        await hydrator.learn_sizes(sorted(blobs))
    log.info("sizes of %d blobs of other branches and tags are known", len(asked))


async def newest_trees(gitdir: Path) -> list[Oid]:
    """The trees of the newest `MAX_REFS` refs, each once, `MAX_TIPS` at most; refs whose commits
    are not here are passed over. Raises: GitFailed."""
    oids = dict.fromkeys(oid.hex() for oid in read_refs(gitdir).values())
    printed = await run_git(
        *("rev-list", "--no-walk=sorted", "--ignore-missing", f"--max-count={MAX_REFS}"),
        *("--no-commit-header", "--format=%T", "--stdin"),
        gitdir=gitdir,
        stdin="".join(f"{oid}\n" for oid in oids).encode(),
        background=True,
    )
    trees = dict.fromkeys(printed.decode("ascii").split())
    return [bytes.fromhex(tree) for tree in trees][:MAX_TIPS]


async def blobs_that_differ(gitdir: Path, base: Oid, tree: Oid) -> set[Oid]:
    """Blobs of `tree` that are not the same in `base`; none where they are far too many, or trees
    are missing."""
    command = (*DIFF_TREES, "--diff-filter=d")
    try:
        async with feed_git(
            *command, base.hex(), tree.hex(), gitdir=gitdir, background=True
        ) as git:
            printed = await git.finish(most_bytes=MAX_PRINTED)
    except GitFailed:
        return set()
    return await trio.to_thread.run_sync(_new_blobs, printed)


def _new_blobs(printed: bytes) -> set[Oid]:
    return {change.after for change in blob_changes(printed) if change.after is not None}
