"""Comparing and merging two branches, of one repository or of a fork and its ancestor.

git merges the trees without a working tree (`git merge-tree --write-tree`, from git 2.38 on) in a
scratch gitdir; what does not merge has changed nothing. No attribute of a tree names a program:
drivers come from the configuration, which is ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import trio

from artifactfs.server.content.differences import Diff, diff_in
from artifactfs.server.content.objects import Content
from artifactfs.server.content.scratch import Scratch, scratch_gitdir
from artifactfs.server.context import Context
from artifactfs.server.events.commits import CommitInfo, commit_info
from artifactfs.server.git.pushes import note_push, remaining_bytes
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Conflict, Problem
from artifactfs.server.wire.push_report import RefUpdate

log = logging.getLogger(__name__)
T = TypeVar("T")

Method = Literal["merge", "fast-forward", "squash"]
Status = Literal["identical", "ahead", "behind", "diverged", "unrelated"]
Outcome = Literal["merged", "fast-forwarded", "squashed", "up-to-date"]

_MOST_S = 60.0
_TRIES = 5
"""How often a merge is made again because the branch moved meanwhile."""
_MOST_CONFLICTS = 1_000
_SUBJECTS = 100
_SERVER = ("artifacts-server", "artifacts-server@localhost")
_SETTINGS = {"merge.renameLimit": "1000", "merge.directoryRenames": "false"}
"""The search for renames is quadratic in this."""


@dataclass(frozen=True, slots=True)
class Side:
    """A ref of a repository."""

    repo: Repo
    ref: str


@dataclass(frozen=True, slots=True)
class Ends:
    """The two commits, and how they lie to each other."""

    base: str
    head: str
    merge_base: str | None
    ahead: int
    behind: int

    @property
    def status(self) -> Status:
        if self.base == self.head:
            return "identical"
        if self.merge_base is None:
            return "unrelated"
        if not self.behind:
            return "ahead"
        return "diverged" if self.ahead else "behind"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `head` has that `base` does not. `commits`: newest first, as many as were asked for.

    `tree`: the merged one, None with `conflicts` or where there is nothing to merge.
    """

    ends: Ends
    tree: str | None
    conflicts: list[Conflict]
    commits: list[CommitInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOrder:
    """What to merge, and how. `expected`: commits that base and head must be at."""

    base: str
    head: Side
    method: Method = "merge"
    message: str | None = None
    author: tuple[str, str] = _SERVER
    expected: str | None = None
    expected_head: str | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of it: the branch was at `before` and is at `after`."""

    outcome: Outcome
    before: str
    after: str


async def compare(context: Context, base: Side, head: Side, commits: int) -> Comparison:
    """Compare two refs; nothing changes. Raises: Problem, NoSuchContent."""
    async with scratch_gitdir(context, base.repo, head.repo, most_s=_MOST_S) as scratch:
        ends = await _ends(scratch, base, head)
        tree, conflicts = await _merged_tree(scratch, ends)
        found = await _commits(scratch, ends, commits)
        return Comparison(ends, tree, conflicts, found)
    raise AssertionError("unreachable")


async def compare_diff(context: Context, base: Side, head: Side, limit: int) -> Diff:
    """What `head` changed since it left `base`, as a unified diff. Raises: Problem."""
    async with scratch_gitdir(context, base.repo, head.repo, most_s=_MOST_S) as scratch:
        ends = await _ends(scratch, base, head)
        left = ends.merge_base or ends.base
        return await diff_in(context, scratch.gitdir, (left, ends.head), (), limit)
    raise AssertionError("unreachable")


async def merge(context: Context, repo: Repo, order: MergeOrder, *, actor: str | None) -> Merged:
    """Merge a branch into the branch `order.base` of `repo`.

    Raises: Problem: MERGE_CONFLICT, with the paths; CONFLICT where a branch is not where it was
    expected, moved again and again, or cannot be moved forward. NoSuchContent.
    """
    started = time.perf_counter()
    if repo.read_only:
        raise Problem(Code.CONFLICT, "The repository is read-only")
    base = Side(repo, f"refs/heads/{order.base}")
    for _ in range(_TRIES):
        async with scratch_gitdir(context, repo, order.head.repo, most_s=_MOST_S) as scratch:
            ends = await _ends(scratch, base, order.head)
            _check_expected(order, ends)
            if ends.status in ("identical", "behind"):
                return Merged("up-to-date", ends.base, ends.base)
            outcome, made = await _commit_to_push(scratch, ends, order)
            with trio.CancelScope(shield=True):  # the branch moves and the database hears of it
                update = RefUpdate(base.ref, ends.base, made)
                if await scratch.push(repo, [update], await remaining_bytes(context, repo)):
                    ms = (time.perf_counter() - started) * 1000
                    await note_push(context, repo, [update], actor=actor, ms=ms)
                    return Merged(outcome, ends.base, made)
    raise Problem(Code.CONFLICT, "The branch is at another commit", pointer="/expected")


def _check_expected(order: MergeOrder, ends: Ends) -> None:
    for expected, found, pointer in (
        (order.expected, ends.base, "/expected"),
        (order.expected_head, ends.head, "/expected_head"),
    ):
        if expected is not None and expected != found:
            raise Problem(Code.CONFLICT, "The branch is at another commit", pointer=pointer)


async def _ends(scratch: Scratch, base: Side, head: Side) -> Ends:
    """Raises: Problem, NoSuchContent."""
    left, right = await _tip(scratch.context, base), await _tip(scratch.context, head)
    if left == right:
        return Ends(left, right, left, 0, 0)
    found = await scratch.git("merge-base", left, right)
    if found.status not in (0, 1):
        raise _unreadable(found.stderr)
    words = ["rev-list", "--left-right", "--count", f"{left}...{right}"]
    counted = await scratch.git(*words)
    if counted.status != 0:
        raise _unreadable(counted.stderr)
    behind, ahead = map(int, counted.output.split())
    return Ends(left, right, found.output.decode().strip() or None, ahead, behind)


async def _tip(context: Context, side: Side) -> str:
    gitdir = context.layout.gitdir(side.repo.id)
    return await _in_thread(lambda: str(Content(gitdir).commit_id(side.ref)))


async def _in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


def _unreadable(stderr: str) -> Problem:
    log.error("comparing failed: %s", stderr)
    return Problem(Code.INTERNAL_ERROR, "The commits cannot be compared")


async def _merged_tree(scratch: Scratch, ends: Ends) -> tuple[str | None, list[Conflict]]:
    """The tree that both make together, or what is in the way. Raises: Problem."""
    if ends.status == "unrelated" or not ends.ahead:
        return None, []
    words = ["merge-tree", "--write-tree", "--name-only", "-z", ends.base, ends.head]
    done = await scratch.git(*words, settings=_SETTINGS)
    tree, _, rest = done.output.partition(b"\0")
    if done.status == 0:
        return tree.decode(), []
    if done.status != 1:
        log.error("git merge-tree failed: %s", done.stderr)
        raise Problem(Code.INTERNAL_ERROR, "The branches cannot be merged here; merge with git")
    return None, _conflicts(rest)


def _conflicts(text: bytes) -> list[Conflict]:
    """The conflicted paths, and what git says of each first: git-merge-tree(1), OUTPUT."""
    names, _, messages = text.partition(b"\0\0")
    kinds: dict[str, str] = {}
    fields = messages.split(b"\0")
    position = 0
    while position < len(fields) and fields[position].isdigit():
        count = int(fields[position])
        paths = fields[position + 1 : position + 1 + count]
        kind = b"".join(fields[position + 1 + count : position + 2 + count]).decode(
            "utf-8", "replace"
        )
        for path in paths:
            if kind.startswith("CONFLICT"):
                kinds.setdefault(_shown(path), kind.partition("(")[2].rstrip(")") or "contents")
        position += 3 + count
    paths_in_order = dict.fromkeys(_shown(name) for name in names.split(b"\0") if name)
    return [
        Conflict(path=path, kind=kinds.get(path, "contents"))
        for path in list(paths_in_order)[:_MOST_CONFLICTS]
    ]


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "replace")


async def _commits(scratch: Scratch, ends: Ends, most: int) -> list[CommitInfo]:
    """The commits of head that base lacks, newest first."""
    if not most or not ends.ahead:
        return []
    words = ["rev-list", f"--max-count={most}", ends.head, f"^{ends.base}"]
    listed = await scratch.git(*words)
    if listed.status != 0:
        raise _unreadable(listed.stderr)
    oids = listed.output.decode().split()

    def read() -> list[CommitInfo]:
        content = Content(scratch.gitdir)
        return [commit_info(content.commit(oid)) for oid in oids]

    return await _in_thread(read)


async def _commit_to_push(scratch: Scratch, ends: Ends, order: MergeOrder) -> tuple[Outcome, str]:
    """The commit that the branch is to be at. Raises: Problem."""
    if ends.status == "unrelated":
        raise Problem(Code.CONFLICT, "The branches have no commit in common", pointer="/head")
    if order.method == "fast-forward":
        if ends.status != "ahead":
            text = "The branch cannot be moved forward: it has commits that the other lacks"
            raise Problem(Code.CONFLICT, text, pointer="/method")
        return "fast-forwarded", ends.head
    tree, conflicts = await _merged_tree(scratch, ends)
    if tree is None:
        count = "a file" if len(conflicts) == 1 else f"{len(conflicts)} files"
        raise Problem(
            Code.MERGE_CONFLICT,
            f"The branches conflict in {count}; nothing was changed",
            pointer="/head",
            conflicts=conflicts,
        )
    squash = order.method == "squash"
    message = order.message or await _message(scratch, ends, order)
    parents = ["-p", ends.base] if squash else ["-p", ends.base, "-p", ends.head]
    name, email = order.author
    made = await scratch.git(
        *["commit-tree", tree, *parents, "-F", "-"],
        data=message.encode() + b"\n",
        environment={"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": email},
    )
    if made.status != 0:
        log.error("git commit-tree failed: %s", made.stderr)
        raise Problem(Code.INTERNAL_ERROR, "The commit could not be made")
    return ("squashed" if squash else "merged"), made.output.decode().strip()


async def _message(scratch: Scratch, ends: Ends, order: MergeOrder) -> str:
    """What git would say of a merge; of a squash, the messages it stands for."""
    branch = order.head.ref.removeprefix("refs/heads/")
    heading = f"Merge {branch} of {order.head.repo.full_name} into {order.base}"
    if order.method != "squash":
        return heading
    commits = await _commits(scratch, ends, _SUBJECTS)
    if ends.ahead == 1 and commits:
        return commits[0].message
    lines = [f"* {commit.message.partition(chr(10))[0]}" for commit in reversed(commits)]
    left_out = ends.ahead - len(commits)
    more = [f"* and {left_out} more"] if left_out > 0 else []
    return "\n".join([heading, "", *more, *lines])
