"""receive-pack: push."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from artifactfs.pktline import PktLineError
from artifactfs.server.cluster.fence import fenced
from artifactfs.server.cluster.standing import Lost
from artifactfs.server.context import Context
from artifactfs.server.git.exchange import NO_CACHE, Exchange
from artifactfs.server.git.process import git_process
from artifactfs.server.git.pushes import note_push, remaining_bytes
from artifactfs.server.git.stream import (
    Stream,
    answer_failure,
    environment_for,
    record_event,
    refuse,
    refuse_away,
    refuse_busy,
    turn,
)
from artifactfs.server.metadata.records import Repo
from artifactfs.server.wire.push_report import PushCommands, PushReport

log = logging.getLogger(__name__)

_RESULT = b"application/x-git-receive-pack-result"
_COMMAND_BYTES = 8 * 1024 * 1024
"""How much the commands of a push may be: they are held in memory."""


class ReceivePack:
    """Serves receive-pack requests."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def serve(self, repo: Repo, exchange: Exchange, protocol: str | None) -> None:
        """Answer one request. Raises: ClientGone, BadBody."""
        exchange.record.command = "push"
        commands = PushCommands()
        remaining = await remaining_bytes(self._context, repo)
        # No bound here: git itself stops at `remaining`, and what comes then is dropped.
        body = exchange.body(None)
        try:
            head = await _read_commands(body, commands)
        except PktLineError as error:
            await refuse(self._context, repo, exchange, 400, str(error))
            return
        async with turn(self._context) as mine:
            if mine:
                try:
                    async with self._context.marks.open(repo.id):
                        await self._run(repo, exchange, protocol, commands, head, body, remaining)
                except Lost as error:
                    log.warning("a push to %s was given up: %s", repo.full_name, error)
                    await refuse_away(self._context, repo, exchange)
            else:
                await refuse_busy(self._context, repo, exchange)

    async def _run(
        self,
        repo: Repo,
        exchange: Exchange,
        protocol: str | None,
        commands: PushCommands,
        head: bytes,
        body: AsyncIterator[bytes],
        remaining: int,
    ) -> None:
        context = self._context
        report = PushReport(sideband=commands.sideband)
        stream = Stream(
            exchange=exchange,
            content_type=_RESULT,
            seen_in=lambda data: None,
            seen_out=report.feed,
            time_limit_s=context.limits.git_time_s,
            outlive_client=True,
        )
        settings = {"receive.maxInputSize": str(max(1, remaining))}
        gitdir = str(context.layout.gitdir(repo.id))
        status: int | None = None
        with context.standing.working() as owner:
            async with (
                fenced(context.standing, context.layout.hooks, owner) as fence,
                git_process(
                    [context.git, "receive-pack", "--stateless-rpc", gitdir],
                    environment={
                        **environment_for(context, protocol, {**settings, **fence.settings}),
                        **fence.environment,
                    },
                    memory_bytes=context.limits.git_memory_bytes,
                    gently=True,
                    descriptors=fence.descriptors,
                ) as git,
            ):
                status = await stream.run(git, head, body)
        if fence.said_no and status is not None and not exchange.started:
            await refuse_away(context, repo, exchange)
            return
        if status is None or (status != 0 and not exchange.started):
            await answer_failure(context, repo, exchange, stream, git.stderr)
            return
        updates = report.succeeded(commands)
        if updates:
            actor, ms = exchange.actor, exchange.record.ms
            await note_push(context, repo, updates, actor=actor, ms=ms)
        elif fence.said_no:
            self._fenced(repo, exchange)
        elif commands.updates:
            self._refused(repo, exchange, report, remaining)
        if not exchange.started:
            await exchange.start(_RESULT, NO_CACHE)
        await exchange.finish()

    def _fenced(self, repo: Repo, exchange: Exchange) -> None:
        """git was not to publish it, which is no fault of the client."""
        text = "the server has lost its place"
        record_event(self._context, repo, exchange, "serverError", text)

    def _refused(self, repo: Repo, exchange: Exchange, report: PushReport, remaining: int) -> None:
        """git took nothing of it, and told the client why."""
        if report.unpack_error is not None and exchange.record.bytes_in > remaining:
            text = "storage limit reached"
            record_event(self._context, repo, exchange, "storageLimitReached", text)
        else:
            reasons = report.unpack_error or ", ".join(sorted(set(report.refused.values())))
            record_event(self._context, repo, exchange, "clientError", reasons)


async def _read_commands(body: AsyncIterator[bytes], commands: PushCommands) -> bytes:
    head = bytearray()
    async for chunk in body:
        head += chunk
        commands.feed(chunk)
        if commands.complete:
            return bytes(head)
        if len(head) > _COMMAND_BYTES:
            raise PktLineError("the push names too many refs")
    commands.finish()
    return bytes(head)
