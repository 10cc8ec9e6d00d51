"""Taking refs away by REST."""

from __future__ import annotations

import logging
import time

import trio

from artifactfs.server.cluster.fence import fenced
from artifactfs.server.content.objects import Content
from artifactfs.server.context import Context
from artifactfs.server.git.process import run_bounded
from artifactfs.server.git.pushes import note_push
from artifactfs.server.git.stream import environment_for, turn
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem
from artifactfs.server.wire.push_report import ZERO, RefUpdate

log = logging.getLogger(__name__)

_TIME_S = 30.0


async def delete_ref(
    context: Context, repo: Repo, name: str, *, expected: str | None, actor: str | None
) -> str:
    """Delete a ref by its full name, where it is at `expected` if that is given; what it was at.

    Raises: Problem: NOT_FOUND; CONFLICT where it is elsewhere, or the default branch.
    """
    started = time.perf_counter()
    if repo.read_only:
        raise Problem(Code.CONFLICT, "The repository is read-only")
    if name == f"refs/heads/{repo.default_branch}":
        text = "It is the default branch; make another one the default first"
        raise Problem(Code.CONFLICT, text, pointer="/ref")
    gitdir = context.layout.gitdir(repo.id)
    async with turn(context) as mine:
        if not mine:
            raise Problem(Code.BUSY, "Too much to do", retry_after=5)
        found = await trio.to_thread.run_sync(lambda: Content(gitdir).ref_target(name))
        if found is None:
            raise Problem(Code.NOT_FOUND, "Not found in this repository")
        if expected is not None and expected != found:
            raise Problem(Code.CONFLICT, "The ref is at another object", pointer="/expected")
        words = [f"--git-dir={gitdir}", "update-ref", "--no-deref", "-d", name, found]
        with trio.CancelScope(shield=True), context.standing.working() as owner:
            async with (
                context.marks.open(repo.id),
                fenced(context.standing, context.layout.hooks, owner) as fence,
            ):
                status, _, stderr = await run_bounded(
                    [context.git, *words],
                    environment={
                        **environment_for(context, None, dict(fence.settings)),
                        **fence.environment,
                    },
                    deadline_s=_TIME_S,
                    descriptors=fence.descriptors,
                )
            if status != 0:
                fence.check()
                log.info("deleting a ref of %s: %s", repo.full_name, stderr)
                raise Problem(Code.CONFLICT, "The ref is at another object", pointer="/expected")
            ms = (time.perf_counter() - started) * 1000
            await note_push(context, repo, [RefUpdate(name, found, ZERO)], actor=actor, ms=ms)
    return found
