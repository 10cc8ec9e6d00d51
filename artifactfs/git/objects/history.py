"""The blobs that `git log -p`, `git show` and `git blame` will ask for.

In a partial clone git fetches old versions one at a time, a process and a connection each. Listing
them needs only commits and trees, which are here, so they can be fetched in one batch before git
asks. ``git log --raw`` names both sides of every change; rename detection is off, because it would
read the blobs. A copy of the file under an older name is therefore not part of the list.

Recent commits are compared here rather than by ``git log``: its output has no bound where commits
replace whole trees.
"""

from __future__ import annotations

import heapq
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from artifactfs.git.command import run_git
from artifactfs.git.objects.database import MissingObject, ObjectDatabase, Oid, TreeEntry
from artifactfs.git.objects.tree_diff import changed_entries

_GITLINK = b"160000"
_NO_OBJECT = b"0" * 40


async def blobs_of_history(
    gitdir: Path, paths: Sequence[str], *, rev: str = "HEAD", deadline_s: float = 300.0
) -> list[Oid]:
    """Every version of `paths` (files or directories) in the history of `rev`, newest first.

    Paths are relative to the top of the working tree and taken literally. Blocks on the network
    only where commits of the history are not here yet, within `deadline_s`.
    Raises: GitFailed (no such revision, deadline).
    """
    output = await run_git(
        "--literal-pathspecs",
        "log",
        "-m",
        "--raw",
        "--no-abbrev",
        "--no-renames",
        "--format=",
        "-z",
        rev,
        "--",
        *paths,
        gitdir=gitdir,
        deadline_s=deadline_s,
    )
    return list(dict.fromkeys(_blobs_of_raw(output)))


def _blobs_of_raw(output: bytes) -> Iterator[Oid]:
    """The blob oids of ``--raw -z`` output: ``:mode mode oid oid status NUL path NUL`` repeated."""
    for field in output.split(b"\0"):
        record = field.lstrip(b"\n")
        if not record.startswith(b":"):
            continue
        parts = record[1:].split(b" ")
        if len(parts) != 5:
            continue
        old_mode, new_mode, old, new, _status = parts
        for mode, name in ((new_mode, new), (old_mode, old)):
            if name != _NO_OBJECT and mode != _GITLINK:
                yield bytes.fromhex(name.decode("ascii"))


async def blobs_of_recent_commits(
    odb: ObjectDatabase,
    commit: Oid,
    *,
    commits: int = 100,
    max_blobs: int = 4_000,
    max_of_commit: int | None = None,
) -> list[Oid]:
    """Both sides of what the last `commits` commits up to `commit` changed, newest first.

    Merges are compared with their first parents. A commit that would make the list longer than
    `max_blobs`, or that changed more than `max_of_commit` by itself, is left out. Never asks the
    network: what is not here is left out too, as are the parents of a shallow commit. A checkpoint
    for each commit, of which one takes 1 ms. Raises: CorruptData.
    """
    found: dict[Oid, None] = {}
    pending = [(0, commit)]
    seen = {commit}
    for _ in range(commits):
        if not pending:
            break
        await trio.lowlevel.checkpoint()
        try:
            info = odb.commit(heapq.heappop(pending)[1])
            parents = [(oid, odb.commit(oid)) for oid in info.parents]
            before = parents[0][1].tree if parents else None
            limit = min(max_blobs - len(found), max_of_commit or max_blobs)
            changed = _changed_blobs(odb, before, info.tree, limit)
        except MissingObject:
            continue
        found |= dict.fromkeys(changed)
        for oid, parent in parents:
            if oid not in seen:
                seen.add(oid)
                heapq.heappush(pending, (-parent.commit_time, oid))
    return list(found)


def _changed_blobs(odb: ObjectDatabase, before: Oid | None, after: Oid, limit: int) -> list[Oid]:
    """The blobs on both sides of a comparison of two trees; none where they exceed `limit`."""
    blobs: list[Oid] = []
    stack: list[tuple[Oid | None, Oid | None]] = [(before, after)]
    while stack:
        for old, new in changed_entries(odb, *stack.pop()):
            if old is not None and new is not None and old.oid == new.oid:
                continue  # only its mode is another
            old_tree, new_tree = _tree_of(old), _tree_of(new)
            if old_tree is not None or new_tree is not None:
                stack.append((old_tree, new_tree))
            for side in (new, old):
                if side is not None and (stat.S_ISREG(side.mode) or stat.S_ISLNK(side.mode)):
                    blobs.append(side.oid)
        if len(blobs) + len(stack) > limit:
            return []
    return blobs


def _tree_of(entry: TreeEntry | None) -> Oid | None:
    return entry.oid if entry is not None and stat.S_ISDIR(entry.mode) else None
