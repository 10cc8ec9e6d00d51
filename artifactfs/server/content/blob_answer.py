"""The bytes of a blob as an answer of the control plane, however large it is."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from artifactfs.server.connections import cut_connection
from artifactfs.server.content.objects import Blob, sniff
from artifactfs.server.content.ranges import Part, entity_tag, part_of
from artifactfs.server.context import Context
from artifactfs.server.git.process import GitProcess, git_process
from artifactfs.server.git.stream import environment_for
from artifactfs.server.metadata.records import Repo

log = logging.getLogger(__name__)

_OPAQUE = "application/octet-stream"
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}


def blob_answer(
    request: Request, context: Context, repo: Repo, blob: Blob, *, sniffed: bool
) -> Response:
    """Send a blob, or the part that is asked for, with a guessed type or as bytes that nothing
    interprets."""
    tag = entity_tag(blob.hash)
    part = part_of(request.headers, tag, blob.size)
    headers = {**SAFE, **part.headers(tag)}
    if part.status in (304, 416):
        return Response(status_code=part.status, headers=headers)
    if blob.data is None:
        return _Streamed(context, repo, blob, part, headers, sniffed=sniffed)
    kind = sniff(blob.data) if sniffed else _OPAQUE
    return Response(
        blob.data[part.start : part.stop],
        status_code=part.status,
        headers={**headers, "Content-Type": kind},
    )


class _Streamed(Response):
    """``git cat-file`` straight to the client, with few of them at once.

    A client that stops reading is cut off by the connection.
    """

    def __init__(
        self,
        context: Context,
        repo: Repo,
        blob: Blob,
        part: Part,
        headers: dict[str, str],
        *,
        sniffed: bool,
    ) -> None:
        super().__init__(headers=headers)
        self._context = context
        self._repo = repo
        self._blob = blob
        self._part = part
        self._sniffed = sniffed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._context
        gitdir = context.layout.gitdir(self._repo.id)
        words = [context.git, f"--git-dir={gitdir}", "cat-file", "blob", self._blob.hash]
        async with (
            context.content_turns,
            git_process(
                words,
                environment=environment_for(context, None),
                memory_bytes=context.limits.git_memory_bytes,
            ) as git,
        ):
            await self._send(git, scope, send)

    async def _send(self, git: GitProcess, scope: Scope, send: Send) -> None:
        part = self._part
        data = await git.read()
        self.headers["Content-Type"] = sniff(data) if self._sniffed else _OPAQUE
        self.headers["Content-Length"] = str(part.stop - part.start)
        start = {
            "type": "http.response.start",
            "status": part.status,
            "headers": self.raw_headers,
        }
        await send(start)
        wants_body = scope["method"] != "HEAD" and not scope.get("head", False)
        position = 0
        while data and wants_body and position < part.stop:
            piece = data[max(0, part.start - position) : part.stop - position]
            position += len(data)
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            data = await git.read() if position < part.stop else b""
        if wants_body and position < part.stop:
            log.error("git cat-file in %s stopped early: %s", self._repo.full_name, git.stderr)
            cut_connection()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
