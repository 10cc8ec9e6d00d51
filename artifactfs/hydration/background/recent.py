"""Recent history: the blobs that the last commits changed, for after the sweep.

`git log -p`, `git log --stat`, `git show` and `git diff HEAD~5` read old versions, which git would
fetch one at a time. Which blobs those are follows from commits and trees, which are here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.objects.history import blobs_of_recent_commits
from artifactfs.hydration.background.sweep import Sweep
from artifactfs.hydration.link.sizing import Sizing
from artifactfs.redact import redact

log = logging.getLogger(__name__)

MAX_BYTES = 32 << 20
"""Of content, some 8 MB on the wire."""
MAX_BLOB = 1 << 20
"""A larger version is only fetched when it is read."""
MAX_BLOBS_UNSIZED = 500
"""Where the remote does not tell sizes, the number bounds what comes."""


class RecentHistory:
    """Lists the blobs of recent commits for the tail of the sweep."""

    def __init__(
        self, *, odb: ObjectDatabase, sizing: Sizing, sweep: Sweep, wake: Callable[[], None]
    ) -> None:
        self._odb = odb
        self._sizing = sizing
        self._sweep = sweep
        self._wake = wake
        self._commit: bytes | None = None
        self._wanted = trio.Event()

    def start(self, commit: bytes) -> None:
        """Fetch what the commits up to `commit` changed, once the sweep is done."""
        if self._sweep.reach != "none":
            self._commit = commit
            self._sweep.recent_pending = True
            self._wanted.set()

    async def run(self) -> None:
        """List for one commit after another, as they are set. Never returns; cancel it."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self._commit is not None:
                self._sweep.set_recent(await self._list(self._commit))
                self._wake()

    async def _list(self, commit: bytes) -> list[bytes]:
        try:
            oids = self._odb.missing(await blobs_of_recent_commits(self._odb, commit))
            sizes = await self._sizing.in_background(oids)
        except (ArtifactFSError, OSError) as error:
            log.info("recent history is not fetched: %s", redact(str(error)))
            return []
        chosen: list[bytes] = []
        budget = MAX_BYTES
        for oid in oids:
            size = sizes.get(oid)
            if size is None:
                if len(chosen) >= MAX_BLOBS_UNSIZED:
                    break
            elif size > min(MAX_BLOB, budget):
                continue
            else:
                budget -= size
            chosen.append(oid)
        return chosen
