"""What subscribers are told of a push."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pygit2
from pygit2.enums import SortMode

from artifactfs.server.events.commits import commit_info
from artifactfs.server.wire.push_report import ZERO, RefUpdate

_COMMITS = 20
_COUNTED = 2_000


def pushed_payloads(
    gitdir: Path, updates: Sequence[RefUpdate], actor: str | None
) -> list[dict[str, Any]]:
    """One payload a ref, newest commits first, at most 20 of them. Runs in a thread."""
    repo = pygit2.Repository(str(gitdir))
    payloads = []
    for update in updates:
        commits, total = _new_commits(repo, update)
        payloads.append(
            {
                "ref": update.ref.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
                "before": update.before,
                "after": update.after,
                "commits": commits,
                "totalCommitsCount": total,
                "commitsTruncated": total > len(commits),
                "actor": {"tokenId": actor},
            }
        )
    return payloads


def _new_commits(repo: pygit2.Repository, update: RefUpdate) -> tuple[list[dict[str, Any]], int]:
    shown: list[dict[str, Any]] = []
    total = 0
    try:
        for commit in _walk(repo, update):
            total += 1
            if total <= _COMMITS:
                shown.append(commit_info(commit).model_dump())
            if total >= _COUNTED:
                break
    except (KeyError, ValueError, pygit2.GitError):
        # Not a commit (a note's tree, a tag of a blob), or the edge of a shallow history.
        return shown, total
    return shown, total


def _walk(repo: pygit2.Repository, update: RefUpdate) -> Iterator[pygit2.Commit]:
    if update.after == ZERO:
        return
    tip = repo[pygit2.Oid(hex=update.after)].peel(pygit2.Commit)
    walker = repo.walk(tip.id, SortMode.TOPOLOGICAL | SortMode.TIME)
    if update.before != ZERO:
        walker.hide(pygit2.Oid(hex=update.before))
    yield from walker
