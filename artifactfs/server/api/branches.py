"""REST: comparing and merging branches and forks, and taking refs away."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, StringConstraints

from artifactfs.server.api.base import (
    Caller,
    CallerOf,
    ContextOf,
    NamespaceName,
    RepoName,
    RepositoriesOf,
)
from artifactfs.server.api.content import DIFF_ANSWER, diff_answer, missing_is_a_problem
from artifactfs.server.api.schemas import ConflictItem, Envelope
from artifactfs.server.content.merging import (
    MergeOrder,
    Outcome,
    Side,
    Status,
    compare,
    compare_diff,
    merge,
)
from artifactfs.server.content.objects import NoSuchContent
from artifactfs.server.content.refs import delete_ref
from artifactfs.server.events.commits import CommitInfo
from artifactfs.server.jobs.repositories import Repositories, check_branch
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem

router = APIRouter(tags=["branches"])

_SERVER = "artifacts-server"
_OID = r"^[0-9a-f]{40}$"
_PERSON = r"^[^<>\x00-\x1f\x7f]*$"

RefName = Annotated[str, Query(max_length=500)]
OtherRepo = Annotated[
    str | None,
    Query(max_length=200, description="where head is: a name, or namespace/name; default: here"),
]
Oid = Annotated[str, StringConstraints(pattern=_OID)]
Person = Annotated[str, StringConstraints(max_length=200, pattern=_PERSON)]


class ComparisonInfo(BaseModel):
    status: Status
    base: str = Field(description="the commit of base")
    head: str
    merge_base: str | None
    ahead: int = Field(description="commits of head that base lacks")
    behind: int
    mergeable: bool = Field(description="a merge would change base, and nothing conflicts")
    conflicts: list[ConflictItem]
    commits: list[CommitInfo] = Field(description="what head has and base lacks, newest first")


class MergeRequest(BaseModel):
    head: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    head_repo: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="where head is: a name, or namespace/name; default: here"
    )
    base: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="the branch that gets it; default: the default branch"
    )
    method: Literal["merge", "fast-forward", "squash"] = "merge"
    message: Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*$")] | None = (
        None
    )
    author_name: Person | None = None
    author_email: Person | None = None
    expected: Oid | None = Field(None, description="commit that base must be at")
    expected_head: Oid | None = Field(None, description="commit that head must be at")


class MergeResult(BaseModel):
    outcome: Outcome
    before: str = Field(description="the commit that base was at")
    hash: str = Field(description="the commit that base is at now")


class DeletedRef(BaseModel):
    name: str
    hash: str = Field(description="what it was at")


async def other_repo(
    repositories: Repositories, caller: Caller, repo: Repo, wanted: str | None
) -> Repo:
    """The repository that `wanted` names as seen from `repo`. Raises: Problem."""
    if wanted is None:
        return repo
    namespace, slash, name = wanted.rpartition("/")
    if not slash:
        namespace = repo.namespace
    caller.check_namespace(namespace)
    return await repositories.get_ready(caller.account_id, namespace, name)


@router.get("/repos/{name}/compare", summary="Compare a branch, or one of a fork, with another")
async def get_comparison(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    head: RefName = "HEAD",
    base: RefName = "HEAD",
    head_repo: OtherRepo = None,
    limit: Annotated[int, Query(ge=0, le=1_000)] = 50,
) -> Envelope[ComparisonInfo]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    other = await other_repo(repositories, caller, repo, head_repo)
    with missing_is_a_problem():
        found = await compare(context, Side(repo, base), Side(other, head), limit)
    ends = found.ends
    return Envelope(
        result=ComparisonInfo(
            status=ends.status,
            base=ends.base,
            head=ends.head,
            merge_base=ends.merge_base,
            ahead=ends.ahead,
            behind=ends.behind,
            mergeable=found.tree is not None,
            conflicts=[ConflictItem(**asdict(each)) for each in found.conflicts],
            commits=found.commits,
        )
    )


@router.get(
    "/repos/{name}/compare/diff",
    response_class=Response,
    responses=DIFF_ANSWER,
    summary="What head changed since it left base, as a unified diff",
)
async def get_comparison_diff(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    head: RefName = "HEAD",
    base: RefName = "HEAD",
    head_repo: OtherRepo = None,
) -> Response:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    other = await other_repo(repositories, caller, repo, head_repo)
    limit = context.limits.diff_bytes
    with missing_is_a_problem():
        found = await compare_diff(context, Side(repo, base), Side(other, head), limit)
    return diff_answer(found)


@router.post("/repos/{name}/merge", summary="Merge a branch, or one of a fork, into a branch")
async def merge_branch(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    body: MergeRequest,
) -> Envelope[MergeResult]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    other = await other_repo(repositories, caller, repo, body.head_repo)
    email = body.author_email or f"{_SERVER}@localhost"
    order = MergeOrder(
        base=check_branch(body.base or repo.default_branch, "/base"),
        head=Side(other, body.head),
        method=body.method,
        message=body.message,
        author=((body.author_name or _SERVER).strip() or _SERVER, email.strip()),
        expected=body.expected,
        expected_head=body.expected_head,
    )
    try:
        done = await merge(context, repo, order, actor=caller.token.id)
    except NoSuchContent as error:
        pointer = "/base" if str(error) == f"refs/heads/{order.base}" else "/head"
        raise Problem(
            Code.NOT_FOUND, "There is no such branch or commit", pointer=pointer
        ) from None
    return Envelope(result=MergeResult(outcome=done.outcome, before=done.before, hash=done.after))


@router.delete("/repos/{name}/refs/{ref:path}", summary="Delete a branch, a tag or another ref")
async def remove_ref(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    ref: str,
    expected: Annotated[
        str | None, Query(pattern=_OID, description="what the ref must be at")
    ] = None,
) -> Envelope[DeletedRef]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    full = f"refs/{ref.removeprefix('refs/')}"
    was = await delete_ref(context, repo, full, expected=expected, actor=caller.token.id)
    return Envelope(result=DeletedRef(name=full, hash=was))
