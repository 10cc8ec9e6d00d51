"""upload-pack: clone, fetch, ls-refs, object-info."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from artifactfs.pktline import PktLineError
from artifactfs.server.context import Context
from artifactfs.server.events.events import Event, Notice
from artifactfs.server.git.exchange import NO_CACHE, Exchange
from artifactfs.server.git.process import git_process
from artifactfs.server.git.stream import (
    Stream,
    answer_failure,
    environment_for,
    refuse,
    refuse_busy,
    turn,
)
from artifactfs.server.metadata.records import Repo
from artifactfs.server.wire import blob_pack
from artifactfs.server.wire.fetch_request import FetchRequest

_RESULT = b"application/x-git-upload-pack-result"
_HEAD_BYTES = 64 * 1024
"""How much of a fetch is read before git starts, to see what it is about."""
_KEPT_OIDS = 10_000


class UploadPack:
    """Serves upload-pack requests."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def serve(
        self, repo: Repo, exchange: Exchange, protocol: str | None, version: int
    ) -> None:
        """Answer one request. Raises: ClientGone, BadBody."""
        request = FetchRequest(version)
        body = exchange.body(self._context.limits.fetch_body_bytes)
        try:
            head, whole = await _read_head(body, request)
        except PktLineError as error:
            await refuse(self._context, repo, exchange, 400, str(error))
            return
        gitdir = self._context.layout.gitdir(repo.id)
        blobs = False
        if request.wants and not request.history:
            if whole and blob_pack.is_simple(request):
                pack = await trio.to_thread.run_sync(blob_pack.answer, gitdir, request.wants)
                if pack is not None:
                    self._note(repo, exchange, request, blobs=True)
                    await exchange.answer(200, pack, _RESULT, NO_CACHE)
                    return
            blobs = await trio.to_thread.run_sync(blob_pack.is_blob, gitdir, request.wants[0])
        async with turn(self._context) as mine:
            if mine:
                await self._run(repo, exchange, protocol, request, head, body, blobs=blobs)
            else:
                await refuse_busy(self._context, repo, exchange)

    async def _run(
        self,
        repo: Repo,
        exchange: Exchange,
        protocol: str | None,
        request: FetchRequest,
        head: bytes,
        body: AsyncIterator[bytes],
        *,
        blobs: bool,
    ) -> None:
        context = self._context

        def seen_in(data: bytes) -> None:
            if data:
                request.feed(data, keep=_KEPT_OIDS)
            else:
                request.finish()

        stream = Stream(
            exchange=exchange,
            content_type=_RESULT,
            seen_in=seen_in,
            seen_out=lambda data: None,
            time_limit_s=context.limits.git_time_s,
            outlive_client=False,
        )
        settings: dict[str, str] = {}
        if blobs:  # on their own they have no names to find deltas by: searching only costs time
            settings["pack.window"] = "0"
        if request.by_name:  # understood, but not advertised: see GIT_CONFIG
            settings["uploadpack.allowRefInWant"] = "true"
        gitdir = str(context.layout.gitdir(repo.id))
        status: int | None = None
        async with git_process(
            [context.git, "upload-pack", "--stateless-rpc", gitdir],
            environment=environment_for(context, protocol, settings),
            memory_bytes=context.limits.git_memory_bytes,
        ) as git:
            status = await stream.run(git, head, body)
        if status is None or (status != 0 and not exchange.started):
            await answer_failure(context, repo, exchange, stream, git.stderr)
            return
        if not exchange.started:
            await exchange.start(_RESULT, NO_CACHE)
        self._note(repo, exchange, request, blobs=blobs)
        await exchange.finish()

    def _note(self, repo: Repo, exchange: Exchange, request: FetchRequest, *, blobs: bool) -> None:
        """Write the request down: for the log, as an event, for subscribers."""
        record = exchange.record
        record.command = request.command or "fetch"
        if record.command != "ls-refs":
            record.wants = request.want_count
            if self._context.access_log.wants_oids:
                record.oids = [oid.decode() for oid in request.wants]
        if record.command == "fetch" and request.want_count:
            events = self._context.events
            events.record(Event(repo.account_id, repo.namespace, repo.name, "pull", record.ms))
            kind = "fetched" if request.history or blobs else "cloned"
            events.notify(Notice(repo.account_id, repo.namespace, repo.name, kind, {}))


async def _read_head(body: AsyncIterator[bytes], request: FetchRequest) -> tuple[bytes, bool]:
    """The first part of a request, and whether that is all of it. Raises: PktLineError."""
    head = bytearray()
    async for chunk in body:
        head += chunk
        request.feed(chunk, keep=_KEPT_OIDS)
        if len(head) >= _HEAD_BYTES:
            return bytes(head), False
    request.finish()
    return bytes(head), True
