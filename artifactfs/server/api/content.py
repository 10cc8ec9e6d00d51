"""REST: what is in a repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import pygit2
import trio
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from artifactfs.server.api.base import (
    CallerOf,
    ContextOf,
    NamespaceName,
    RepoName,
    RepositoriesOf,
)
from artifactfs.server.api.schemas import Envelope
from artifactfs.server.content.archives import Archive, ArchiveAnswer, Format
from artifactfs.server.content.blob_answer import SAFE, blob_answer
from artifactfs.server.content.differences import Diff, diff, two_ends
from artifactfs.server.content.objects import Content, EntryType, NoSuchContent, TooLarge
from artifactfs.server.context import Context
from artifactfs.server.events.commits import CommitInfo, commit_info
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem

router = APIRouter(tags=["content"])
T = TypeVar("T")

_MAX_LOG = 1_000
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The bytes of a Range"},
    304: {"description": "The client has it: If-None-Match names its ETag"},
    416: {"description": "The Range lies behind the end"},
}
DIFF_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "The diff", "content": {"text/x-diff": {"schema": {"type": "string"}}}}
}
_ANY_BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes, with a type guessed from them",
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The archive",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/gzip", "application/x-tar", "application/zip")
        },
    }
}


class RefItem(BaseModel):
    name: str
    hash: str


class TreeItem(BaseModel):
    name: str
    mode: str
    hash: str
    type: EntryType


async def read_content(context: Context, repo: Repo, read: Callable[[Content], T]) -> T:
    """Run `read` on an open repository in a thread. Raises: Problem."""
    gitdir = context.layout.gitdir(repo.id)
    try:
        with missing_is_a_problem():
            return await trio.to_thread.run_sync(lambda: read(Content(gitdir)))
    except TooLarge:
        raise Problem(Code.MEMORY_LIMIT, "An object is too large to be shown") from None
    except pygit2.GitError as error:
        raise Problem(Code.INTERNAL_ERROR, "The repository cannot be read") from error


@contextmanager
def missing_is_a_problem() -> Iterator[None]:
    """Tells a client that a repository does not have what it asked for. Raises: Problem."""
    try:
        yield
    except NoSuchContent:
        raise Problem(Code.NOT_FOUND, "Not found in this repository") from None


def diff_answer(found: Diff) -> Response:
    """Raises: Problem where it was cut off."""
    if not found.whole:
        raise Problem(Code.MEMORY_LIMIT, "The diff is too large; make it with git")
    return Response(found.data, headers={**SAFE, "Content-Type": "text/x-diff; charset=utf-8"})


@router.get("/repos/{name}/log", summary="Commits of a ref, first parents, newest first")
async def get_log(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    ref: Annotated[str, Query(max_length=500)] = "HEAD",
    limit: Annotated[int, Query(ge=1, le=_MAX_LOG)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Envelope[list[CommitInfo]]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)

    def read(content: Content) -> list[CommitInfo]:
        try:
            return [commit_info(commit) for commit in content.log(ref, limit, offset)]
        except NoSuchContent:
            return []

    return Envelope(result=await read_content(context, repo, read))


@router.get("/repos/{name}/refs", summary="Branches, tags and other refs")
async def get_refs(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
) -> Envelope[list[RefItem]]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    refs = await read_content(context, repo, lambda content: content.refs())
    return Envelope(result=[RefItem(name=ref.name, hash=ref.hash) for ref in refs])


@router.get(
    "/repos/{name}/diff",
    response_class=Response,
    responses=DIFF_ANSWER,
    summary="What changed between two commits, as a unified diff",
)
async def get_diff(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    head: Annotated[str, Query(max_length=500)] = "HEAD",
    base: Annotated[
        str | None, Query(max_length=500, description="default: the first parent of head")
    ] = None,
    path: Annotated[
        list[str] | None, Query(max_length=100, description="only these files and folders")
    ] = None,
) -> Response:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    ends = await read_content(context, repo, lambda content: two_ends(content, base, head))
    if any(not each or "\0" in each for each in path or ()):
        raise Problem(Code.INVALID_INPUT, "The path is not valid", pointer="/path")
    found = await diff(context, repo, ends, tuple(path or ()), context.limits.diff_bytes)
    return diff_answer(found)


@router.get(
    "/repos/{name}/archive",
    response_class=Response,
    responses=_ARCHIVE,
    summary="A ref, or a folder of it, as tar.gz, tar or zip",
)
async def get_archive(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    ref: Annotated[str, Query(max_length=500)] = "HEAD",
    path: Annotated[str, Query(max_length=4_096, description="of a folder; default: all")] = "",
    format: Format = "tar.gz",
) -> Response:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    folder = path.strip("/")

    def find(content: Content) -> str:
        if folder and content.entry_at(ref, folder).type != "tree":
            raise NoSuchContent(folder)
        return str(content.commit_id(ref))

    commit = await read_content(context, repo, find)
    return ArchiveAnswer(context, Archive(repo, commit, folder, format))


@router.get("/repos/{name}/commit/{hash}", summary="One commit")
async def get_commit(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    hash: str,
) -> Envelope[CommitInfo]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    found = await read_content(context, repo, lambda content: commit_info(content.commit(hash)))
    return Envelope(result=found)


@router.get("/repos/{name}/tree/{hash}", summary="The entries of a tree")
async def get_tree(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    hash: str,
) -> Envelope[list[TreeItem]]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    entries = await read_content(context, repo, lambda content: content.tree(hash))
    return Envelope(
        result=[TreeItem(name=e.name, mode=e.mode, hash=e.hash, type=e.type) for e in entries]
    )


@router.get(
    "/repos/{name}/blob/{hash}",
    response_class=Response,
    responses=_BYTES | _PARTS,
    summary="The bytes of a blob",
)
async def get_blob(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    hash: str,
) -> Response:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    held = context.limits.held_bytes
    blob = await read_content(context, repo, lambda content: content.blob(hash, held))
    return blob_answer(request, context, repo, blob, sniffed=False)


@router.get(
    "/repos/{name}/file",
    response_class=Response,
    responses=_BYTES | _PARTS,
    summary="The bytes of a file of a ref",
)
async def get_file(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    path: Annotated[str, Query(max_length=4_096)],
    ref: Annotated[str, Query(max_length=500)] = "HEAD",
) -> Response:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    held = context.limits.held_bytes
    blob = await read_content(context, repo, lambda content: content.file(ref, path, held))
    return blob_answer(request, context, repo, blob, sniffed=False)


@router.get(
    "/repos/{name}/raw/{ref}/{path:path}",
    response_class=Response,
    responses=_ANY_BYTES | _PARTS,
    summary="A file of a ref with a guessed content type",
)
async def get_raw(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    ref: str,
    path: str,
) -> Response:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    held = context.limits.held_bytes
    blob = await read_content(
        context, repo, lambda content: content.file_below(f"{ref}/{path}", held)
    )
    return blob_answer(request, context, repo, blob, sniffed=True)
