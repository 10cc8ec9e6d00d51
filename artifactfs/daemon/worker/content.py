"""Requests to a worker about contents: prefetch, evict, gc, trace."""

from __future__ import annotations

import logging
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial

import trio

from artifactfs.daemon.background.tasks import Background
from artifactfs.daemon.control.messages import Message
from artifactfs.daemon.control.server import Request
from artifactfs.errors import InvalidInput
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.objects.history import blobs_of_history
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.hydration.order.priority import compile_globs
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)

REPORT_S = 0.2
_ENTRIES_A_STEP = 1_000  # between two checkpoints: about 3 ms
_GITLINK = 0o160000


def _anchored(pattern: str) -> str:
    """A path with a slash starts at the top of the tree; ``.`` is the whole tree."""
    glob = pattern.strip("/")
    return "" if glob == "." else glob


class ContentRequests:
    """The handlers."""

    def __init__(
        self,
        layout: RepoLayout,
        *,
        odb: ObjectDatabase,
        filesystem: FileSystem,
        hydrator: Hydrator,
        background: Background,
        history_done: trio.Event,
    ) -> None:
        self._layout = layout
        self._odb = odb
        self._filesystem = filesystem
        self._hydrator = hydrator
        self._background = background
        self._history_done = history_done

    async def prefetch(self, request: Request) -> Message:
        """Fetch ``patterns`` of the mounted tree, or every version of ``history`` paths."""
        name = self._layout.directory.name
        history = request.args.get("history") or []
        if history:
            await self._have_history(request)
            oids = await blobs_of_history(self._layout.gitdir, history)
        else:
            patterns = request.args.get("patterns") or []
            if not patterns and request.args.get("wait", True):
                files = await self._fetch_everything(request)
                if files is not None:
                    return {"name": name, "blobs": files, "waited": True}
            oids = [oid async for oid in self._matching(patterns)]
            if patterns and not oids:
                raise InvalidInput(
                    f"nothing in the tree matches {' '.join(patterns)}",
                    hint="patterns are as in .gitignore, from the top of the tree",
                )
        if not request.args.get("wait", True):
            self._background.keep("prefetch", partial(self._hydrator.prefetch, oids))
            return {"name": name, "blobs": len(oids), "waited": False}
        await self._fetch(request, oids)
        return {"name": name, "blobs": len(oids), "waited": True}

    async def _have_history(self, request: Request) -> None:
        if not self._history_done.is_set():
            await request.progress(stage="waiting for history")
            await self._history_done.wait()

    async def _fetch(self, request: Request, oids: Sequence[Oid]) -> None:
        async with self._reported(request, len(oids)) as note:
            await self._hydrator.prefetch(oids, progress=note)

    async def _fetch_everything(self, request: Request) -> int | None:
        async with self._reported(request, 0) as note:
            return await self._hydrator.prefetch_tree(self._filesystem.base.tree, progress=note)

    @asynccontextmanager
    async def _reported(
        self, request: Request, total: int
    ) -> AsyncIterator[Callable[[int, int], None]]:
        """What is given to the function is told to who has sent `request`, now and then."""
        state = [0, total]

        def note(done: int, total: int) -> None:
            state[:] = done, total

        async def report() -> None:
            while True:
                await request.progress(stage="prefetching", done=state[0], total=state[1])
                await trio.sleep(REPORT_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            yield note
            nursery.cancel_scope.cancel()

    async def _matching(self, patterns: Sequence[str]) -> AsyncIterator[Oid]:
        """Blobs of the mounted tree whose path matches one of `patterns`; all without any."""
        wanted = compile_globs([glob for pattern in patterns if (glob := _anchored(pattern))])
        everything = wanted is None
        # Depth first: blobs of one folder come in one request, and the remote has them as deltas of
        # each other, which it would have to take apart where the other is not asked for.
        left: list[tuple[Oid, bytes]] = [(self._filesystem.base.tree, b"")]
        steps = 0
        while left:
            tree, prefix = left.pop()
            for entry in self._odb.tree(tree):
                path = prefix + entry.name
                if stat.S_ISDIR(entry.mode):
                    left.append((entry.oid, path + b"/"))
                elif stat.S_IFMT(entry.mode) != _GITLINK and (
                    everything or (wanted is not None and wanted.match(path))
                ):
                    yield entry.oid
                steps += 1
            if steps >= _ENTRIES_A_STEP:
                steps = 0
                await trio.lowlevel.checkpoint()

    async def evict(self, request: Request) -> Message:
        """Shrink the shared cache to ``max_bytes``."""
        freed = await self._hydrator.evict(int(request.args.get("max_bytes") or 0))
        return {"freed_bytes": freed}

    async def changes(self, _request: Request) -> list[Message]:
        """How the working tree differs from the mounted commit."""
        return [
            {"path": change.path.decode("utf-8", "surrogateescape"), "kind": change.kind}
            for change in await self._filesystem.changes()
        ]

    async def trace(self, request: Request) -> list[Message]:
        """The last fetches after ``since`` (a count of all so far), oldest first."""
        trace = self._hydrator.trace
        since = int(request.args.get("since") or 0)
        if since > trace.total:  # of the mount's process before this one
            since = 0
        first = trace.total - len(trace)
        records = []
        for number, record in enumerate(trace, start=first + 1):
            if number > since:
                fields = asdict(record)
                fields.update(
                    number=number,
                    oid=record.oid.hex(),
                    path=record.path.decode("utf-8", "replace"),
                )
                records.append(fields)
        return records
