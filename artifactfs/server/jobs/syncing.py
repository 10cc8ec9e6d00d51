"""Keeping an import in step with the repository that it came from.

The source is fetched into a scratch gitdir, compared there, and what moves forward is pushed, each
ref only from where it was seen. So whatever was pushed here meanwhile, or before, stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from artifactfs.server.content.objects import Content, Ref
from artifactfs.server.content.scratch import scratch_gitdir
from artifactfs.server.context import Context
from artifactfs.server.git.pushes import note_push, remaining_bytes
from artifactfs.server.jobs.importing import look
from artifactfs.server.jobs.remote_fetch import (
    Credentials,
    ImportFailed,
    RemoteFetch,
    refspecs_of,
)
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem
from artifactfs.server.wire.push_report import ZERO, RefUpdate

_KINDS = ("refs/heads/", "refs/tags/", "refs/notes/")
_AT_ONCE = 500
"""Refs in one push: their names are arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOrder:
    """`force`: also refs that have other commits here. `prune`: also take away what is gone."""

    credentials: Credentials | None = None
    force: bool = False
    prune: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """What moved, and the refs that have commits here which the source lacks."""

    updates: tuple[RefUpdate, ...]
    diverged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    updates: list[RefUpdate]
    diverged: list[str]


def source_url(repo: Repo) -> str:
    """Where an import came from. Raises: Problem."""
    kind, _, url = (repo.source or "").partition(":")
    if kind != "git":
        raise Problem(Code.CONFLICT, "The repository was not imported")
    return url


async def sync(context: Context, repo: Repo, order: SyncOrder, *, actor: str | None) -> Synced:
    """Fetch what is new at the source of an import. `Jobs` bounds how many at once.

    Raises: Problem.
    """
    started = time.perf_counter()
    private = context.settings.allow_private_networks
    credentials = order.credentials
    found = await look(source_url(repo), allow_private=private, credentials=credentials)
    if credentials is not None and not credentials.are_for(found.url):
        credentials = None
    most_s = context.limits.import_time_s
    async with scratch_gitdir(context, repo, most_s=most_s, queued=False) as scratch:
        fetch = RemoteFetch(context, repo, scratch.gitdir, credentials)
        options = ["--no-tags"] if repo.import_branch is not None else []
        try:
            await fetch.run(found.url, refspecs_of(repo.import_branch), *options)
        except ImportFailed as error:
            code = Code.UPSTREAM_UNAVAILABLE
            if "storage limit" in str(error):
                code = Code.STORAGE_LIMIT
            raise Problem(code, f"The sync failed: {error}") from None
        target = context.layout.gitdir(repo.id)

        def read() -> _Plan:
            theirs, here = Content(scratch.gitdir), Content(target)
            return _plan(theirs, here.refs(), repo, order)

        plan = await trio.to_thread.run_sync(read)
        moved: set[str] = set()
        with trio.CancelScope(shield=True):  # what is moved is told to the database
            for start in range(0, len(plan.updates), _AT_ONCE):
                some = plan.updates[start : start + _AT_ONCE]
                moved |= await scratch.push(repo, some, await remaining_bytes(context, repo))
            updates = tuple(each for each in plan.updates if each.ref in moved)
            if updates:
                ms = (time.perf_counter() - started) * 1000
                await note_push(context, repo, updates, actor=actor, ms=ms)
        left = {each.ref for each in plan.updates} - moved
        return Synced(updates, tuple(sorted({*plan.diverged, *left})))
    raise AssertionError("unreachable")


def _mirrored(refs: Iterable[Ref], branch: str | None) -> dict[str, str]:
    """The refs that an import is of, with what they hold."""
    if branch is not None:
        return {ref.name: ref.hash for ref in refs if ref.name == f"refs/heads/{branch}"}
    return {ref.name: ref.hash for ref in refs if ref.name.startswith(_KINDS)}


def _plan(theirs: Content, here: list[Ref], repo: Repo, order: SyncOrder) -> _Plan:
    there = _mirrored(theirs.refs(), repo.import_branch)
    ours = _mirrored(here, repo.import_branch)
    plan = _Plan([], [])
    for name, oid in there.items():
        before = ours.get(name, ZERO)
        if before == oid:
            continue
        forward = name.startswith("refs/heads/") and theirs.descends(oid, before)
        if before == ZERO or forward or order.force:
            plan.updates.append(RefUpdate(name, before, oid))
        else:
            plan.diverged.append(name)
    if order.prune:
        kept = f"refs/heads/{repo.default_branch}"
        gone = [name for name in ours if name not in there and name != kept]
        plan.updates.extend(RefUpdate(name, ours[name], ZERO) for name in gone)
    return plan
