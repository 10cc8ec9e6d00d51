"""What changed between two commits, as a unified diff made by git.

git and not libgit2, because a file may be of any size: git leaves large ones out as binary, and
its memory is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.server.content.objects import Content, NoSuchContent
from artifactfs.server.context import Context
from artifactfs.server.git.process import git_process
from artifactfs.server.git.stream import environment_for, turn
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem

_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_TIME_S = 30.0
_OPTIONS = ("--patch", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "-M")


@dataclass(frozen=True, slots=True)
class Diff:
    """A unified diff. `whole`: nothing of it was left out."""

    data: bytes
    whole: bool


def two_ends(content: Content, base: str | None, head: str) -> tuple[str, str]:
    """The objects to compare: commits, or the empty tree before a first commit.

    Without a `base` it is the first parent of `head`. Raises: NoSuchContent.
    """
    top = content.commit_id(head)
    if base is not None:
        return str(content.commit_id(base)), str(top)
    parents = content.commit(str(top)).parent_ids
    if not parents:
        return _EMPTY_TREE, str(top)
    if not content.has(parents[0]):
        raise NoSuchContent(str(parents[0]))  # the edge of a shallow history
    return str(parents[0]), str(top)


async def diff(
    context: Context, repo: Repo, ends: tuple[str, str], paths: tuple[str, ...], limit: int
) -> Diff:
    """The diff between two objects of a repository, cut at `limit` bytes. Raises: Problem."""
    async with turn(context) as mine:
        if mine:
            return await diff_in(context, context.layout.gitdir(repo.id), ends, paths, limit)
    raise Problem(Code.BUSY, "Too much to do", retry_after=5)


async def diff_in(
    context: Context, gitdir: Path, ends: tuple[str, str], paths: tuple[str, ...], limit: int
) -> Diff:
    """The same, for who has a place for Git processes already. Raises: Problem."""
    words = [context.git, f"--git-dir={gitdir}", "--literal-pathspecs", "diff-tree", *_OPTIONS]
    data = bytearray()
    with trio.move_on_after(_TIME_S):
        async with git_process(
            [*words, *ends, "--", *paths],
            environment=environment_for(context, None),
            memory_bytes=context.limits.git_memory_bytes,
        ) as git:
            while len(data) <= limit and (piece := await git.read()):
                data += piece
            if len(data) > limit:
                return Diff(bytes(data[:limit]), whole=False)
            if await git.wait() == 0:
                return Diff(bytes(data), whole=True)
            raise Problem(Code.INTERNAL_ERROR, "The commits cannot be compared")
    raise Problem(Code.BUSY, "Comparing takes too long", retry_after=5)
