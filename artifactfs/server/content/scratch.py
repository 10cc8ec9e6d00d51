"""A gitdir for the time of one operation on one or two repositories.

It sees their objects and keeps its own, so whatever is tried in it changes nothing. What is meant
to stay is pushed: receive-pack checks it and moves the ref only if it is where it was seen, as for
a push over HTTP.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.server.cluster.fence import Fence, fenced
from artifactfs.server.context import Context
from artifactfs.server.git.process import git_process
from artifactfs.server.git.stream import environment_for, turn
from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem
from artifactfs.server.storage.gitdir import create_gitdir
from artifactfs.server.wire.push_report import RefUpdate

log = logging.getLogger(__name__)

_OUTPUT_BYTES = 8 * 1024 * 1024
_LINE = re.compile(r"(?P<flag>[ +\-*=!])\t[^\t]*:(?P<ref>[^\t]+)\t(?P<summary>.*)")
_LOST = re.compile(r"stale info|failed to update ref|lock|incorrect old value|already exists")
"""Somebody else moved the ref, or has it right now."""


@dataclass(frozen=True, slots=True)
class Done:
    """A Git process that ended by itself. `output` is what it printed, at most 8 MiB."""

    status: int
    output: bytes
    stderr: str


@dataclass(frozen=True, slots=True)
class Scratch:
    """See `scratch_gitdir`."""

    context: Context
    gitdir: Path

    async def git(
        self,
        *words: str,
        data: bytes = b"",
        environment: Mapping[str, str] | None = None,
        settings: dict[str, str] | None = None,
        descriptors: tuple[int, ...] = (),
    ) -> Done:
        """Run git here. Raises: Problem (MEMORY_LIMIT) where it prints too much."""
        context = self.context
        async with git_process(
            [context.git, f"--git-dir={self.gitdir}", *words],
            environment={**environment_for(context, None, settings), **(environment or {})},
            memory_bytes=context.limits.git_memory_bytes,
            descriptors=descriptors,
        ) as git:
            if data:
                await git.stdin.send_all(data)
            await git.stdin.aclose()
            output = bytearray()
            while piece := await git.read():
                output += piece
                if len(output) > _OUTPUT_BYTES:
                    raise Problem(Code.MEMORY_LIMIT, "The result is too large; use git")
            return Done(await git.wait(), bytes(output), git.stderr)

    def _receive(self, fence: Fence, most_bytes: int) -> str:
        """The command of the receiving end: git gives it no configuration of ours."""
        settings = {"receive.maxInputSize": str(max(1, most_bytes)), **fence.settings}
        options = " ".join(f"-c {shlex.quote(f'{key}={v}')}" for key, v in settings.items())
        return f"GIT_NO_REPLACE_OBJECTS=1 {shlex.quote(self.context.git)} {options} receive-pack"

    async def push(self, repo: Repo, updates: Sequence[RefUpdate], most_bytes: int) -> set[str]:
        """Bring commits into a repository and move its refs there; the refs that were moved.

        Each only from where `updates` saw it. Nothing of a push that brings more than `most_bytes`
        stays. Not cancellable once it began. Raises: Problem.
        """
        leases = [f"--force-with-lease={each.ref}:{each.before}" for each in updates]
        deletion = "0" * 40
        specs = [f"{'' if u.after == deletion else u.after}:{u.ref}" for u in updates]
        gitdir = self.context.layout.gitdir(repo.id)
        limit = self.context.limits.git_time_s
        deadline = trio.current_time() + limit
        standing = self.context.standing
        with trio.CancelScope(shield=True, deadline=deadline), standing.working() as owner:
            async with (
                self.context.marks.open(repo.id),
                fenced(standing, self.context.layout.hooks, owner) as fence,
            ):
                receive = self._receive(fence, most_bytes)
                done = await self.git(
                    *["push", "--porcelain", "--no-signed", f"--receive-pack={receive}"],
                    *[*leases, str(gitdir), *specs],
                    environment=fence.environment,
                    descriptors=fence.descriptors,
                )
            fence.check()
            if "maximum allowed size" in done.stderr:
                raise Problem(Code.STORAGE_LIMIT, "The storage limit is reached")
            lines = _results(done.output.decode("utf-8", "surrogateescape"))
            refused = [line["summary"] for line in lines if line["flag"] == "!"]
            if any(not _LOST.search(reason) for reason in refused) or (done.status and not lines):
                log.error("push into %s failed: %s %s", repo.full_name, refused, done.stderr)
                raise Problem(Code.INTERNAL_ERROR, "The repository does not take the commits")
            return {line["ref"] for line in lines if line["flag"] not in "!="}
        raise Problem(Code.BUSY, "Storing takes too long", retry_after=5)


def _results(porcelain: str) -> list[re.Match[str]]:
    """What git-push(1) says of each ref."""
    return [line for line in map(_LINE.fullmatch, porcelain.splitlines()) if line is not None]


@asynccontextmanager
async def scratch_gitdir(
    context: Context, *repos: Repo, most_s: float, queued: bool = True
) -> AsyncIterator[Scratch]:
    """A gitdir that sees the objects of `repos`; gone with its own after the block.

    `queued`: takes one of the places for Git processes. The block may take `most_s` seconds.
    Raises: Problem (BUSY).
    """
    gitdir = context.layout.trash / f"scratch.{tokens.new_id()}"
    sources = tuple(dict.fromkeys(context.layout.gitdir(repo.id) for repo in repos))
    async with AsyncExitStack() as stack:
        if queued and not await stack.enter_async_context(turn(context)):
            raise Problem(Code.BUSY, "Too much to do", retry_after=5)
        try:
            with trio.move_on_after(most_s) as scope:
                await trio.to_thread.run_sync(_make, gitdir, sources)
                yield Scratch(context, gitdir)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(gitdir, ignore_errors=True))
        if scope.cancelled_caught:
            raise Problem(Code.BUSY, "It takes too long; use git", retry_after=5)


def _make(gitdir: Path, sources: tuple[Path, ...]) -> None:
    create_gitdir(gitdir, "scratch", pools=sources)
    edges = b""
    for source in sources:
        try:
            edges += (source / "shallow").read_bytes()
        except FileNotFoundError:
            continue
    if edges:  # where the histories of imports with a depth end
        (gitdir / "shallow").write_bytes(edges)
