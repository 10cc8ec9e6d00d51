"""One Git service for one request: bytes between the client and git, with every way it can end."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

import trio

from artifactfs.pktline import PktLineError
from artifactfs.server.connections import client_gone, cut_connection
from artifactfs.server.context import Context
from artifactfs.server.events.events import ErrorType, Event, error_type
from artifactfs.server.git.exchange import NO_CACHE, BadBody, ClientGone, Exchange, Headers
from artifactfs.server.git.process import GitProcess
from artifactfs.server.metadata.records import Repo
from artifactfs.server.storage.gitdir import git_environment

log = logging.getLogger(__name__)

_DRAIN_S = 60.0
_TRY_AGAIN: Headers = ((b"retry-after", b"5"),)
_OUR_FAULT = re.compile(
    r"not a git repository|No space left|Input/output error|corrupt|Permission denied|"
    r"Too many open files|Cannot allocate memory|object directory .* does not exist"
)


class End(Enum):
    """How the streaming ended."""

    DONE = auto()
    CLIENT_GONE = auto()
    TIME_OVER = auto()
    BAD_BODY = auto()


def environment_for(
    context: Context, protocol: str | None, settings: dict[str, str] | None = None
) -> dict[str, str]:
    """The environment of a Git process of this server."""
    return git_environment(context.layout.git_config, protocol=protocol, settings=settings)


@asynccontextmanager
async def turn(context: Context) -> AsyncIterator[bool]:
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


@dataclass(slots=True, kw_only=True)
class Stream:
    """Pumps a request body into git and git's output into the answer.

    `seen_in` gets each piece of the body behind the head, and an empty one at its end; it raises
    PktLineError. `seen_out` gets each piece of the output. `outlive_client`: once the whole body is
    here, git may finish even if the client goes away.
    """

    exchange: Exchange
    content_type: bytes
    seen_in: Callable[[bytes], None]
    seen_out: Callable[[bytes], None]
    time_limit_s: float
    outlive_client: bool
    end: End = End.DONE
    status: int = 400
    message: str = ""
    body_over: trio.Event = field(default_factory=trio.Event)

    async def run(self, git: GitProcess, head: bytes, body: AsyncIterator[bytes]) -> int | None:
        """Pump until git ends; its exit status, None if it was stopped."""
        status: int | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_time, nursery.cancel_scope, git)
            nursery.start_soon(self._feed, nursery.cancel_scope, git, head, body)
            if not self.outlive_client:
                nursery.start_soon(self._watch_client, nursery.cancel_scope, git)
            while data := await git.read():
                self.seen_out(data)
                if not self.exchange.started:
                    await self.exchange.start(self.content_type, NO_CACHE)
                await self.exchange.write(data)
            status = await git.wait()
            # git may end before the body does, when it refuses a push. Many clients read no
            # answer before they have sent everything: take the rest and drop it.
            with trio.move_on_after(_DRAIN_S):
                await self.body_over.wait()
            nursery.cancel_scope.cancel()
        return None if self.end is not End.DONE else status

    def _stop(self, end: End, scope: trio.CancelScope, git: GitProcess) -> None:
        self.body_over.set()
        if git.running:
            if self.end is End.DONE:
                self.end = end
            scope.cancel()

    async def _watch_time(self, scope: trio.CancelScope, git: GitProcess) -> None:
        await trio.sleep(self.time_limit_s)
        if self.exchange.started:
            cut_connection()
        self._stop(End.TIME_OVER, scope, git)

    async def _watch_client(self, scope: trio.CancelScope, git: GitProcess) -> None:
        await client_gone()
        self._stop(End.CLIENT_GONE, scope, git)

    async def _feed(
        self, scope: trio.CancelScope, git: GitProcess, head: bytes, body: AsyncIterator[bytes]
    ) -> None:
        try:
            writable = await _send(git, head)
            async for chunk in body:
                self.seen_in(chunk)
                if writable:
                    writable = await _send(git, chunk)
            self.seen_in(b"")
            await git.stdin.aclose()
            self.body_over.set()
        except ClientGone:
            self._stop(End.CLIENT_GONE, scope, git)
        except PktLineError as error:
            self.message = str(error)
            self._stop(End.BAD_BODY, scope, git)
        except BadBody as error:
            self.message, self.status = str(error), error.status
            self._stop(End.BAD_BODY, scope, git)


async def _send(git: GitProcess, data: bytes) -> bool:
    try:
        await git.stdin.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return False
    return True


async def answer_failure(
    context: Context, repo: Repo, exchange: Exchange, stream: Stream, stderr: str
) -> None:
    """Answer a request whose git did not do its work. Raises: ClientGone."""
    if stream.end is End.CLIENT_GONE:
        raise ClientGone
    if stream.end is End.TIME_OVER:
        await refuse(context, repo, exchange, 503, "The request took too long")
    elif stream.end is End.BAD_BODY:
        await refuse(context, repo, exchange, stream.status, stream.message)
    elif _OUR_FAULT.search(stderr):
        log.error("%s of %s: %s", exchange.record.service, repo.full_name, stderr)
        await refuse(context, repo, exchange, 500, "The repository cannot be used")
    else:
        log.info("%s of %s: %s", exchange.record.service, repo.full_name, stderr)
        await refuse(context, repo, exchange, 400, "git refused the request")


async def refuse(
    context: Context,
    repo: Repo | None,
    exchange: Exchange,
    status: int,
    text: str,
    *,
    headers: Headers = (),
) -> None:
    """Answer with an error and record it; if an answer has begun, cut it off."""
    record_event(context, repo, exchange, error_type(status), text)
    if not exchange.started:
        await exchange.answer(status, text.encode() + b"\n", headers=headers)
    else:
        cut_connection()
        context.access_log.write(exchange.record)


async def refuse_busy(context: Context, repo: Repo | None, exchange: Exchange) -> None:
    """Nothing was done; the client may try again."""
    text = "Too many Git requests at once"
    await refuse(context, repo, exchange, 503, text, headers=_TRY_AGAIN)


async def refuse_away(context: Context, repo: Repo | None, exchange: Exchange) -> None:
    """The database cannot be asked; the client may try again."""
    await refuse(context, repo, exchange, 503, "The database is away", headers=_TRY_AGAIN)


def record_event(
    context: Context, repo: Repo | None, exchange: Exchange, kind: ErrorType, text: str
) -> None:
    """Record an error of this request, if it is known what it is about."""
    if repo is None:
        return
    context.events.record(
        Event(
            repo.account_id,
            repo.namespace,
            repo.name,
            kind,
            exchange.record.ms,
            error_message=text,
        )
    )
