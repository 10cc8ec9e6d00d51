"""REST: repositories and their tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import SecretStr

from artifactfs.server.api.base import (
    CallerOf,
    ContextOf,
    JobsOf,
    NamespaceName,
    RepoName,
    RepositoriesOf,
    remote_url,
)
from artifactfs.server.api.paging import (
    PageQuery,
    RepoQuery,
    Sort,
    list_repos,
    list_tokens,
)
from artifactfs.server.api.schemas import (
    CreatedRepo,
    CreatedToken,
    CreateRepo,
    CreateToken,
    Deleted,
    Envelope,
    ForkedRepo,
    ForkRepo,
    ImportRepo,
    RepoInfo,
    SyncedRef,
    SyncRepo,
    SyncResult,
    TokenInfo,
    UpdateRepo,
)
from artifactfs.server.context import Context
from artifactfs.server.jobs.remote_fetch import Credentials
from artifactfs.server.jobs.syncing import SyncOrder, source_url
from artifactfs.server.metadata.clock import iso, iso_or_none, now_ms
from artifactfs.server.metadata.records import Repo, RepoToken
from artifactfs.server.problems import Code, Problem

router = APIRouter(tags=["repos"])


def repo_info(request: Request, context: Context, repo: Repo) -> RepoInfo:
    """A repository as the API shows it."""
    return RepoInfo(
        id=repo.id,
        namespace=repo.namespace,
        name=repo.name,
        description=repo.description,
        default_branch=repo.default_branch,
        created_at=iso(repo.created_at),
        updated_at=iso(repo.updated_at),
        last_push_at=iso_or_none(repo.last_push_at),
        source=repo.source,
        read_only=repo.read_only,
        anonymous_read=repo.anonymous_read,
        remote=remote_url(request, context, repo.namespace, repo.name),
        status=repo.status,
    )


def token_info(token: RepoToken) -> TokenInfo:
    return TokenInfo(
        id=token.id,
        scope=token.scope,
        state=token.state(now_ms()),
        created_at=iso(token.created_at),
        expires_at=iso(token.expires_at),
    )


def _created(request: Request, context: Context, repo: Repo, token: str) -> CreatedRepo:
    return CreatedRepo(
        id=repo.id,
        name=repo.name,
        description=repo.description,
        default_branch=repo.default_branch,
        remote=remote_url(request, context, repo.namespace, repo.name),
        token=token,
    )


@router.post("/repos", status_code=201, summary="Create a repository")
async def create_repo(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    body: CreateRepo,
) -> Envelope[CreatedRepo]:
    repo, token = await repositories.create(
        caller.account_id,
        namespace,
        body.name,
        description=body.description,
        default_branch=body.default_branch,
        read_only=body.read_only,
        anonymous_read=body.anonymous_read,
    )
    return Envelope(result=_created(request, context, repo, token))


@router.get("/repos", summary="List repositories")
async def get_repos(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    namespace: NamespaceName,
    limit: Annotated[int | None, Query(ge=1, le=200)] = None,
    per_page: Annotated[int | None, Query(ge=1, le=200)] = None,
    cursor: Annotated[str | None, Query(max_length=1_000)] = None,
    page: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    search: Annotated[str | None, Query(max_length=200)] = None,
    sort: Sort = "created_at",
    direction: Literal["asc", "desc"] = "desc",
) -> Envelope[list[RepoInfo]]:
    query = RepoQuery(
        caller.account_id,
        (namespace,),
        limit or per_page or 50,
        cursor=cursor,
        page=page,
        search=search,
        sort=sort,
        descending=direction == "desc",
    )
    repos, info = await list_repos(context.store, query)
    return Envelope(result=[repo_info(request, context, repo) for repo in repos], result_info=info)


@router.get("/repos/{name}", summary="Describe a repository")
async def get_repo(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
) -> Envelope[RepoInfo]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    return Envelope(result=repo_info(request, context, repo))


@router.patch("/repos/{name}", summary="Change what a repository is")
async def update_repo(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    body: UpdateRepo,
) -> Envelope[RepoInfo]:
    repo = await repositories.update(
        await repositories.get_ready(caller.account_id, namespace, name),
        description=body.description,
        default_branch=body.default_branch,
        read_only=body.read_only,
        anonymous_read=body.anonymous_read,
    )
    return Envelope(result=repo_info(request, context, repo))


@router.delete("/repos/{name}", status_code=202, summary="Delete a repository")
async def delete_repo(
    caller: CallerOf, repositories: RepositoriesOf, namespace: NamespaceName, name: RepoName
) -> Envelope[Deleted]:
    return Envelope(
        result=Deleted(id=await repositories.delete(caller.account_id, namespace, name))
    )


@router.post("/repos/{name}/fork", status_code=201, summary="Fork a repository")
async def fork_repo(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    jobs: JobsOf,
    namespace: NamespaceName,
    name: RepoName,
    body: ForkRepo,
) -> Envelope[ForkedRepo]:
    if body.namespace is not None:
        caller.check_namespace(body.namespace)
    parent = await repositories.get_ready(caller.account_id, namespace, name)
    repo, token, objects = await jobs.fork(
        parent,
        body.name,
        namespace=body.namespace,
        description=body.description,
        read_only=body.read_only,
        anonymous_read=body.anonymous_read,
        default_branch_only=body.default_branch_only,
    )
    return Envelope(
        result=ForkedRepo(**_created(request, context, repo, token).model_dump(), objects=objects)
    )


@router.post("/repos/{name}/import", status_code=201, summary="Import a repository over https")
async def import_repo(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    jobs: JobsOf,
    namespace: NamespaceName,
    name: RepoName,
    body: ImportRepo,
) -> Envelope[CreatedRepo]:
    repo, token = await jobs.import_repo(
        caller.account_id,
        namespace,
        name,
        body.url,
        branch=body.branch,
        depth=body.depth,
        description=body.description,
        read_only=body.read_only,
        anonymous_read=body.anonymous_read,
        credentials=_credentials(body.url, body.username, body.password),
    )
    return Envelope(result=_created(request, context, repo, token))


def _credentials(url: str, username: str | None, password: SecretStr | None) -> Credentials | None:
    """Raises: Problem for a user name alone."""
    if password is None and username is None:
        return None
    secret = "" if password is None else password.get_secret_value()
    if not secret or any(c < " " or c == "\x7f" for c in secret):
        raise Problem(Code.INVALID_INPUT, "The password is not valid", pointer="/password")
    return Credentials(url, username or "x", secret)


@router.post("/repos/{name}/sync", summary="Bring an import in step with its source")
async def sync_repo(
    caller: CallerOf,
    repositories: RepositoriesOf,
    jobs: JobsOf,
    namespace: NamespaceName,
    name: RepoName,
    body: SyncRepo,
) -> Envelope[SyncResult]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    order = SyncOrder(
        credentials=_credentials(source_url(repo), body.username, body.password),
        force=body.force,
        prune=body.prune,
    )
    done = await jobs.sync(repo, order, actor=caller.token.id)
    updated = [SyncedRef(ref=u.ref, before=u.before, after=u.after) for u in done.updates]
    return Envelope(result=SyncResult(updated=updated, diverged=list(done.diverged)))


@router.get("/repos/{name}/tokens", summary="List the tokens of a repository")
async def get_tokens(
    caller: CallerOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: NamespaceName,
    name: RepoName,
    state: Literal["active", "expired", "revoked", "all"] = "active",
    per_page: Annotated[int, Query(ge=1, le=100)] = 30,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Envelope[list[TokenInfo]]:
    repo = await repositories.get_ready(caller.account_id, namespace, name)
    found, info = await list_tokens(context.store, repo.id, state, PageQuery(page, per_page))
    return Envelope(result=[token_info(token) for token in found], result_info=info)


@router.post("/tokens", status_code=201, summary="Create a token for a repository")
async def create_token(
    caller: CallerOf, repositories: RepositoriesOf, namespace: NamespaceName, body: CreateToken
) -> Envelope[CreatedToken]:
    token, plaintext = await repositories.create_token(
        caller.account_id, namespace, body.repo, body.scope, body.ttl
    )
    return Envelope(
        result=CreatedToken(
            id=token.id,
            plaintext=plaintext,
            scope=token.scope,
            expires_at=iso(token.expires_at),
        )
    )


@router.delete("/tokens/{token_id}", summary="Revoke a token")
async def revoke_token(
    caller: CallerOf, repositories: RepositoriesOf, namespace: NamespaceName, token_id: str
) -> Envelope[Deleted]:
    return Envelope(
        result=Deleted(id=await repositories.revoke_token(caller.account_id, namespace, token_id))
    )
