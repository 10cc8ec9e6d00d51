"""REST: commits of one file, for those who have no working tree at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import trio
from fastapi import APIRouter, Depends, Query, Request

from artifactfs.server.api.base import (
    CallerOf,
    ContextOf,
    NamespaceName,
    RepoName,
    RepositoriesOf,
)
from artifactfs.server.api.content import missing_is_a_problem, read_content
from artifactfs.server.api.schemas import Envelope
from artifactfs.server.content.writing import FileChange, check_path, write_file
from artifactfs.server.context import Context
from artifactfs.server.events.commits import CommitInfo, commit_info
from artifactfs.server.jobs.repositories import check_branch
from artifactfs.server.metadata.records import Repo

router = APIRouter(tags=["content"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_PERSON = r"^[^<>\x00-\x1f\x7f]*$"

Path = Annotated[str, Query(max_length=4_096)]
Branch = Annotated[
    str | None, Query(max_length=200, description="default: the default branch; made if absent")
]
Message = Annotated[str | None, Query(max_length=10_000, pattern=r"^[^\x00]*$")]
Person = Annotated[str | None, Query(max_length=200, pattern=_PERSON)]
Expected = Annotated[
    str | None,
    Query(pattern="^[0-9a-f]{40}$", description="commit the branch must be at; zeros: absent"),
]


@dataclass(frozen=True, slots=True)
class Asked:
    """The query of both."""

    path: Path
    branch: Branch = None
    message: Message = None
    author_name: Person = None
    author_email: Person = None
    expected: Expected = None

    def change(self, repo: Repo, verb: str) -> FileChange:
        """Without data: the file goes. Raises: Problem."""
        name = self.author_name or "artifacts-server"
        email = self.author_email or "artifacts-server@localhost"
        return FileChange(
            branch=check_branch(self.branch or repo.default_branch, "/branch"),
            path=check_path(self.path),
            data=None,
            message=self.message or f"{verb} {self.path}",
            author=(name.strip(), email.strip()),
            expected=self.expected,
        )


AskedOf = Annotated[Asked, Depends()]


@router.put("/repos/{name}/file", summary="Write a file: a commit on a branch", openapi_extra=_BODY)
async def put_file(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    asked: AskedOf,
) -> Envelope[CommitInfo]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    change = asked.change(repo, "Write")
    change = replace(change, data=await request.body())
    return await _commit(context, repo, change, caller.token.id)


@router.delete("/repos/{name}/file", summary="Delete a file: a commit on a branch")
async def delete_file(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    asked: AskedOf,
) -> Envelope[CommitInfo]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    return await _commit(context, repo, asked.change(repo, "Delete"), caller.token.id)


async def _commit(
    context: Context, repo: Repo, change: FileChange, actor: str
) -> Envelope[CommitInfo]:
    with missing_is_a_problem():
        made = await write_file(context, repo, change, actor=actor)
    with trio.CancelScope(shield=True):
        found = await read_content(context, repo, lambda content: commit_info(content.commit(made)))
    return Envelope(result=found)
