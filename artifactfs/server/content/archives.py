"""A ref, or a folder of it, as one file: made by `git archive` while it is sent."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from artifactfs.server.connections import cut_connection
from artifactfs.server.content.blob_answer import SAFE
from artifactfs.server.context import Context
from artifactfs.server.git.process import git_process
from artifactfs.server.git.stream import environment_for
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem

log = logging.getLogger(__name__)

Format = Literal["tar.gz", "tar", "zip"]

_TYPES: dict[Format, str] = {
    "tar.gz": "application/gzip",
    "tar": "application/x-tar",
    "zip": "application/zip",
}


@dataclass(frozen=True, slots=True)
class Archive:
    """What to pack: a commit, all of it or the folder at `path`."""

    repo: Repo
    commit: str
    path: str
    format: Format

    @property
    def name(self) -> str:
        """Of the folder that everything is in, and of the file without its ending."""
        return f"{self.repo.name}-{self.commit[:10]}"


class ArchiveAnswer(Response):
    """Sends an archive, with few of them at once.

    Symlinks stay symlinks, submodules are empty folders; `.gitattributes` of the commit may leave
    files out (``export-ignore``), as everywhere with git. A client that stops reading is cut off by
    the connection.
    """

    def __init__(self, context: Context, archive: Archive) -> None:
        name = f"{archive.name}.{archive.format}"
        headers = {
            **SAFE,
            "Content-Type": _TYPES[archive.format],
            "Content-Disposition": f'attachment; filename="{name}"',
        }
        super().__init__(headers=headers)
        del self.headers["content-length"]  # nobody knows it before the end
        self._context = context
        self._archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context, archive = self._context, self._archive
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        if scope["method"] == "HEAD" or scope.get("head", False):
            await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        words = [
            *[context.git, f"--git-dir={context.layout.gitdir(archive.repo.id)}"],
            *["--literal-pathspecs", "archive", f"--format={archive.format}"],
            *[f"--prefix={archive.name}/", archive.commit],
            *(["--", archive.path] if archive.path else []),
        ]
        with trio.move_on_after(context.limits.git_time_s) as limit:
            async with (
                context.content_turns,
                git_process(
                    words,
                    environment=environment_for(context, None),
                    memory_bytes=context.limits.git_memory_bytes,
                ) as git,
            ):
                await git.stdin.aclose()
                data = await git.read()
                if not data:
                    log.error("git archive in %s failed: %s", archive.repo.full_name, git.stderr)
                    raise Problem(Code.INTERNAL_ERROR, "The archive cannot be made")
                await send(start)
                while data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    data = await git.read()
                if await git.wait() != 0:
                    log.error("git archive in %s stopped: %s", archive.repo.full_name, git.stderr)
                    cut_connection()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        if limit.cancelled_caught:
            cut_connection()
