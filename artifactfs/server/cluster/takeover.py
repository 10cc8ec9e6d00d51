"""Taking over from servers that are gone: their jobs, their deliveries, what they left on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from artifactfs.server.cluster.membership import GRACE_S, Member, server_lock
from artifactfs.server.cluster.standing import Lost
from artifactfs.server.metadata.database import DatabaseError, Store, Transaction
from artifactfs.server.metadata.limits import forget_windows
from artifactfs.server.storage.settings import DataLayout
from artifactfs.server.storage.sweeping import sweep

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_NOBODYS = "SELECT 1 AS one FROM repos WHERE status <> 'ready' AND owner IS NULL LIMIT 1"
"""Left by a server that ended in order, or by one that was alone on these data."""
_FORGET_S = 600.0
_WINDOWS_S = 3_600.0
YOUNG_S = 60.0
"""A lock file of git that is younger may be that of a push on another server: git holds one for
moments, and a push whose refs are locked for longer than this is not waited for."""


class Takeover:
    """Looks for servers that are gone, until cancelled."""

    def __init__(
        self,
        member: Member,
        store: Store,
        layout: DataLayout,
        resume: Callable[[], Awaitable[None]],
    ) -> None:
        """`resume`: take up the jobs that are ours and that nobody does."""
        self._member = member
        self._store = store
        self._layout = layout
        self._resume = resume
        self._gone_since: dict[str, float] = {}

    async def run(self) -> None:
        forgotten = trio.current_time()
        while True:
            await trio.sleep(_LOOK_S)
            try:
                await self._look()
                if trio.current_time() - forgotten > _FORGET_S:
                    forgotten = trio.current_time()
                    await self._store.write(partial(forget_windows, older_than_s=_WINDOWS_S))
            except (DatabaseError, Lost):
                continue  # `Member` has said it
            except OSError as error:
                log.error("what another server left cannot be mended: %s", error)

    async def _look(self) -> None:
        owner = self._member.owner
        if owner is None:
            return
        if await self._store.row(_NOBODYS) is not None:
            await self._resume()
        rows = await self._store.rows("SELECT id FROM servers")
        folders = await trio.to_thread.run_sync(os.listdir, self._layout.open)
        others = ({str(row["id"]) for row in rows} | set(folders)) - {owner}
        self._gone_since = {k: v for k, v in self._gone_since.items() if k in others}
        for other in sorted(others):
            key = server_lock(other)
            if not await self._member.try_lock(key):
                self._gone_since.pop(other, None)
                continue
            try:
                since = self._gone_since.setdefault(other, trio.current_time())
                if trio.current_time() - since >= GRACE_S:
                    await self._take(other, owner)
            finally:
                with trio.CancelScope(shield=True):
                    await self._member.unlock(key)

    async def _take(self, other: str, owner: str) -> None:
        jobs = await self._store.write(partial(self._take_rows, other=other, owner=owner))
        if jobs is not None:
            log.warning("taking over from server %s, with %d jobs", other, jobs)
        folder = self._layout.open / other
        if folder.is_dir():
            marks = await trio.to_thread.run_sync(os.listdir, folder)
            left = await self._store.read(
                partial(sweep, self._layout, marks=marks, folder=folder, young_s=YOUNG_S)
            )
            if not left:
                folder.rmdir()
        else:
            (self._layout.open / other).unlink(missing_ok=True)  # a mark of a server alone
        if jobs:
            await self._resume()

    def _take_rows(self, tx: Transaction, *, other: str, owner: str) -> int | None:
        """How many jobs; None if it was taken over before, and only its marks are left."""
        self._member.check(tx, owner)
        names = {"other": other, "owner": owner}
        if not tx.run("DELETE FROM servers WHERE id = :other", names):
            return None
        tx.run("UPDATE deliveries SET owner = NULL WHERE owner = :other", names)
        return tx.run(
            "UPDATE repos SET owner = :owner WHERE owner = :other AND status <> 'ready'", names
        )
