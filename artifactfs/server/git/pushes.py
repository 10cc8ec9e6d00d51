"""What every change of refs has in common, by git or by REST: its bounds, and its traces."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from artifactfs.server.context import Context
from artifactfs.server.events.events import Event, Notice
from artifactfs.server.events.push_notice import pushed_payloads
from artifactfs.server.metadata import catalog
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.records import Repo
from artifactfs.server.storage.gitdir import own_bytes
from artifactfs.server.wire.push_report import RefUpdate


async def remaining_bytes(context: Context, repo: Repo) -> int:
    """How many bytes a push may still bring."""
    limits, known = context.limits, context.catalog
    of_repo = limits.repo_bytes - repo.own_bytes - await known.pool_bytes(repo.id)
    of_account = limits.account_bytes - await known.account_bytes(repo.account_id)
    return max(0, min(of_repo, of_account))


async def note_push(
    context: Context, repo: Repo, updates: Sequence[RefUpdate], *, actor: str | None, ms: float
) -> None:
    """Bring the database up to date before the client hears that it is done; tell subscribers.

    `actor`: id of the token that did it. `ms`: how long it took.
    """
    gitdir = context.layout.gitdir(repo.id)
    size = await trio.to_thread.run_sync(own_bytes, gitdir)
    now = now_ms()
    await context.store.write(
        lambda tx: catalog.update_repo(
            tx, repo.id, last_push_at=now, updated_at=now, own_bytes=size
        )
    )
    where = (repo.account_id, repo.namespace, repo.name)
    context.events.record(Event(*where, "push", ms))
    if await context.webhooks.wanted(repo.account_id, "pushed"):
        payloads = await trio.to_thread.run_sync(pushed_payloads, gitdir, updates, actor)
        for payload in payloads:
            context.events.notify(Notice(*where, "pushed", payload))
    await context.look_at_packs(repo.id)
