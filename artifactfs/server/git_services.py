"""upload-pack and receive-pack for one request, streamed between the client and git."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto

import trio

from artifactfs.server import catalog
from artifactfs.server.clock import now_ms
from artifactfs.server.connections import client_gone, cut_connection
from artifactfs.server.context import Context
from artifactfs.server.events import Event, Notice
from artifactfs.server.exchange import NO_CACHE, BadBody, ClientGone, Exchange
from artifactfs.server.fetch_request import FetchRequest
from artifactfs.server.git_process import GitProcess, git_process
from artifactfs.server.gitdir import git_environment, own_bytes
from artifactfs.server.objects import only_blobs
from artifactfs.server.pktline import PktError
from artifactfs.server.push_notice import pushed_payloads
from artifactfs.server.push_report import PushCommands, PushReport
from artifactfs.server.records import Repo

log = logging.getLogger(__name__)

_HEAD_BYTES = 64 * 1024
"""How much of a fetch is read before git starts, to see what it is about."""
_KEPT_OIDS = 10_000
_DRAIN_S = 30.0
_OUR_FAULT = re.compile(
    r"not a git repository|No space left|Input/output error|corrupt|Permission denied|"
    r"Too many open files|Cannot allocate memory|object directory .* does not exist"
)


class _End(Enum):
    """How the streaming ended."""

    DONE = auto()
    CLIENT_GONE = auto()
    TIME_OVER = auto()
    MALFORMED = auto()


def git_environment_for(
    context: Context, protocol: str | None, settings: dict[str, str] | None = None
) -> dict[str, str]:
    """The environment of a Git process of this server."""
    return git_environment(context.layout.git_config, protocol=protocol, settings=settings)


class _Stream:
    """Pumps a request body into git and git's output into the answer."""

    def __init__(
        self,
        exchange: Exchange,
        content_type: bytes,
        *,
        seen_in: Callable[[bytes], None],
        seen_out: Callable[[bytes], None],
        time_limit_s: float,
        finish_after_body: bool,
    ) -> None:
        self.end = _End.DONE
        self.message = ""
        self._exchange = exchange
        self._content_type = content_type
        self._seen_in = seen_in
        self._seen_out = seen_out
        self._time_limit_s = time_limit_s
        self._finish_after_body = finish_after_body
        """Once the whole body is here, let git finish even if the client goes away."""

    async def run(self, git: GitProcess, head: bytes, body: AsyncIterator[bytes]) -> int | None:
        """Pump until git ends; its exit status, None if it was stopped."""
        status: int | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope, git)
            nursery.start_soon(self._feed, nursery.cancel_scope, git, head, body)
            if not self._finish_after_body:
                nursery.start_soon(self._watch_client, nursery.cancel_scope)
            while data := await git.read():
                self._seen_out(data)
                if not self._exchange.started:
                    await self._exchange.start(self._content_type, NO_CACHE)
                await self._exchange.write(data)
            status = await git.wait()
            nursery.cancel_scope.cancel()
        return None if self.end is not _End.DONE else status

    def _stop(self, end: _End, scope: trio.CancelScope) -> None:
        if self.end is _End.DONE:
            self.end = end
        scope.cancel()

    async def _watch(self, scope: trio.CancelScope, git: GitProcess) -> None:
        await trio.sleep(self._time_limit_s)
        if self._exchange.started:
            cut_connection()
        self._stop(_End.TIME_OVER, scope)

    async def _watch_client(self, scope: trio.CancelScope) -> None:
        await client_gone()
        self._stop(_End.CLIENT_GONE, scope)

    async def _feed(
        self, scope: trio.CancelScope, git: GitProcess, head: bytes, body: AsyncIterator[bytes]
    ) -> None:
        try:
            writable = await _send(git, head)
            async for chunk in body:
                self._seen_in(chunk)
                if writable:
                    writable = await _send(git, chunk)
                # Else git ended early. The rest of the body is read and dropped, because many
                # clients read no answer before they have sent everything.
            self._seen_in(b"")
            await git.stdin.aclose()
        except ClientGone:
            self._stop(_End.CLIENT_GONE, scope)
        except (BadBody, PktError) as error:
            self.message = str(error)
            self._stop(_End.MALFORMED, scope)


async def _send(git: GitProcess, data: bytes) -> bool:
    try:
        await git.stdin.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return False
    return True


@asynccontextmanager
async def _turn(context: Context) -> AsyncIterator[bool]:
    """Wait for one of the places for Git processes; False if none came free in time."""
    with trio.move_on_after(context.limits.git_queue_s) as waiting:
        await context.git_turns.acquire()
    if waiting.cancelled_caught:
        yield False
        return
    try:
        yield True
    finally:
        context.git_turns.release()


async def _busy(exchange: Exchange) -> None:
    await exchange.answer(
        503, b"Too many Git requests at once\n", headers=((b"retry-after", b"5"),)
    )


class UploadPack:
    """Serves clone, fetch, ls-refs and object-info."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def serve(self, repo: Repo, exchange: Exchange, protocol: str | None) -> None:
        context = self._context
        request = FetchRequest(2 if "version=2" in (protocol or "") else 0)
        keep = _KEPT_OIDS
        body = exchange.body(context.limits.fetch_body_bytes)
        try:
            head = await _read_head(body, request, keep)
        except PktError as error:
            await self._fail(repo, exchange, 400, str(error))
            return
        settings = self._settings(repo, request)

        def seen_in(data: bytes) -> None:
            if data:
                request.feed(data, keep=keep)
            else:
                request.finish()

        async with _turn(context) as mine:
            if not mine:
                await _busy(exchange)
                return
            stream = _Stream(
                exchange,
                b"application/x-git-upload-pack-result",
                seen_in=seen_in,
                seen_out=lambda data: None,
                time_limit_s=context.limits.git_time_s,
                finish_after_body=False,
            )
            argv = [
                context.git,
                "upload-pack",
                "--stateless-rpc",
                str(context.layout.gitdir(repo.id)),
            ]
            environment = git_environment_for(context, protocol, settings)
            status: int | None = None
            async with git_process(argv, environment=environment) as git:
                status = await stream.run(git, head, body)
            self._note(exchange, request)
            await self._conclude(repo, exchange, request, stream, status, git.stderr)

    def _settings(self, repo: Repo, request: FetchRequest) -> dict[str, str]:
        """Blobs on their own have no names to find deltas by: the search would only cost time."""
        if request.wants and not request.history:
            gitdir = self._context.layout.gitdir(repo.id)
            if only_blobs(gitdir, request.wants[:1]):
                return {"pack.window": "0"}
        return {}

    def _note(self, exchange: Exchange, request: FetchRequest) -> None:
        exchange.record.command = request.command or "fetch"
        if exchange.record.command != "ls-refs":
            exchange.record.wants = request.want_count
            if self._context.access_log.wants_oids:
                exchange.record.oids = [oid.decode() for oid in request.wants]

    async def _conclude(
        self,
        repo: Repo,
        exchange: Exchange,
        request: FetchRequest,
        stream: _Stream,
        status: int | None,
        stderr: str,
    ) -> None:
        if stream.end is _End.CLIENT_GONE:
            raise ClientGone
        if stream.end is _End.TIME_OVER:
            await self._fail(repo, exchange, 503, "The request took too long")
        elif stream.end is _End.MALFORMED:
            await self._fail(repo, exchange, 400, stream.message)
        elif not exchange.started and status != 0:
            fault = bool(_OUR_FAULT.search(stderr))
            log.log(logging.ERROR if fault else logging.INFO, "upload-pack: %s", stderr)
            await self._fail(
                repo,
                exchange,
                500 if fault else 400,
                "The repository cannot be read" if fault else "git refused the request",
            )
        else:
            if not exchange.started:
                await exchange.start(b"application/x-git-upload-pack-result", NO_CACHE)
            self._pulled(repo, exchange, request)
            await exchange.finish()

    def _pulled(self, repo: Repo, exchange: Exchange, request: FetchRequest) -> None:
        if request.command != "fetch" or not request.want_count:
            return
        events = self._context.events
        events.record(Event(repo.account_id, repo.namespace, repo.name, "pull", exchange.record.ms))
        kind = "fetched" if request.history else "cloned"
        events.notify(Notice(repo.account_id, repo.namespace, repo.name, kind, {}))

    async def _fail(self, repo: Repo, exchange: Exchange, status: int, text: str) -> None:
        self._context.events.record(
            Event(
                repo.account_id,
                repo.namespace,
                repo.name,
                "serverError" if status >= 500 else "clientError",
                exchange.record.ms,
                error_message=text,
            )
        )
        if not exchange.started:
            await exchange.answer(status, text.encode() + b"\n")
        else:
            cut_connection()
            self._context.access_log.write(exchange.record)


class ReceivePack:
    """Serves push."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def serve(self, repo: Repo, exchange: Exchange, protocol: str | None) -> None:
        context = self._context
        exchange.record.command = "push"
        commands = PushCommands()
        remaining = self._remaining(repo)
        body = exchange.body(remaining + context.limits.fetch_body_bytes)
        try:
            head = await _read_commands(body, commands)
        except PktError as error:
            await self._refuse(repo, exchange, 400, str(error))
            return
        report = PushReport(sideband=commands.sideband)
        async with _turn(context) as mine:
            if not mine:
                await _busy(exchange)
                return
            stream = _Stream(
                exchange,
                b"application/x-git-receive-pack-result",
                seen_in=lambda data: None,
                seen_out=report.feed,
                time_limit_s=context.limits.git_time_s,
                finish_after_body=True,
            )
            argv = [
                context.git,
                "receive-pack",
                "--stateless-rpc",
                str(context.layout.gitdir(repo.id)),
            ]
            environment = git_environment_for(
                context, protocol, {"receive.maxInputSize": str(max(1, remaining))}
            )
            status: int | None = None
            async with git_process(argv, environment=environment, gently=True) as git:
                status = await stream.run(git, head, body)
            if status is None or (status != 0 and not exchange.started):
                await self._failed(repo, exchange, stream, git.stderr)
                return
            await self._pushed(repo, exchange, commands, report, remaining)
            if not exchange.started:
                await exchange.start(b"application/x-git-receive-pack-result", NO_CACHE)
            await exchange.finish()

    def _remaining(self, repo: Repo) -> int:
        """How many bytes a push may still bring."""
        limits, known = self._context.limits, self._context.catalog
        of_repo = limits.repo_bytes - repo.own_bytes - known.pool_bytes(repo.id)
        return max(0, min(of_repo, limits.account_bytes - known.account_bytes(repo.account_id)))

    async def _pushed(
        self,
        repo: Repo,
        exchange: Exchange,
        commands: PushCommands,
        report: PushReport,
        remaining: int,
    ) -> None:
        updates = report.succeeded(commands)
        if not updates:
            over = report.unpack_error is not None and exchange.record.bytes_in > remaining
            reasons = report.unpack_error or ", ".join(sorted(set(report.refused.values())))
            if commands.updates:
                self._context.events.record(
                    Event(
                        repo.account_id,
                        repo.namespace,
                        repo.name,
                        "storageLimitReached" if over else "clientError",
                        exchange.record.ms,
                        error_message="storage limit reached" if over else reasons,
                    )
                )
            return
        gitdir = self._context.layout.gitdir(repo.id)
        size = await trio.to_thread.run_sync(own_bytes, gitdir)
        now = now_ms()
        await self._context.store.write(
            lambda db: catalog.update_repo(
                db, repo.id, last_push_at=now, updated_at=now, own_bytes=size
            )
        )
        events = self._context.events
        events.record(Event(repo.account_id, repo.namespace, repo.name, "push", exchange.record.ms))
        if self._context.webhooks.wanted(repo.account_id, "pushed"):
            actor = exchange.actor
            payloads = await trio.to_thread.run_sync(pushed_payloads, gitdir, updates, actor)
            for payload in payloads:
                events.notify(Notice(repo.account_id, repo.namespace, repo.name, "pushed", payload))

    async def _failed(self, repo: Repo, exchange: Exchange, stream: _Stream, stderr: str) -> None:
        if stream.end is _End.CLIENT_GONE:
            raise ClientGone
        if stream.end is _End.TIME_OVER:
            await self._refuse(repo, exchange, 503, "The request took too long")
        elif stream.end is _End.MALFORMED:
            status = 413 if "too large" in stream.message else 400
            await self._refuse(repo, exchange, status, stream.message)
        else:
            fault = bool(_OUR_FAULT.search(stderr))
            log.log(logging.ERROR if fault else logging.INFO, "receive-pack: %s", stderr)
            text = "The repository cannot be written" if fault else "git refused the request"
            await self._refuse(repo, exchange, 500 if fault else 400, text)

    async def _refuse(self, repo: Repo, exchange: Exchange, status: int, text: str) -> None:
        self._context.events.record(
            Event(
                repo.account_id,
                repo.namespace,
                repo.name,
                "serverError" if status >= 500 else "clientError",
                exchange.record.ms,
                error_message=text,
            )
        )
        if not exchange.started:
            await exchange.answer(status, text.encode() + b"\n")
        else:
            cut_connection()
            self._context.access_log.write(exchange.record)


async def _read_head(body: AsyncIterator[bytes], request: FetchRequest, keep: int) -> bytes:
    head = bytearray()
    async for chunk in body:
        head += chunk
        request.feed(chunk, keep=keep)
        if len(head) >= _HEAD_BYTES:
            return bytes(head)
    request.finish()
    return bytes(head)


async def _read_commands(body: AsyncIterator[bytes], commands: PushCommands) -> bytes:
    head = bytearray()
    async for chunk in body:
        head += chunk
        commands.feed(chunk)
        if commands.complete:
            return bytes(head)
    commands.finish()
    return bytes(head)
