"""The web page: rendered on the server, nothing from elsewhere, whole without its one script.

Login by API token.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from artifactfs.server.api.base import ContextOf, RepositoriesOf, remote_url
from artifactfs.server.api.content import read_content
from artifactfs.server.api.paging import (
    PageQuery,
    RepoQuery,
    list_namespaces,
    list_repos,
    list_tokens,
)
from artifactfs.server.api.repos import token_info
from artifactfs.server.content.blob_answer import SAFE
from artifactfs.server.content.differences import diff
from artifactfs.server.content.objects import Blob, Content, NoSuchContent, sniff
from artifactfs.server.events.commits import commit_info
from artifactfs.server.metadata.clock import iso_or_none
from artifactfs.server.metadata.records import Repo, Scope
from artifactfs.server.problems import Problem, not_found
from artifactfs.server.web.charts import FOOT, HEIGHT, WIDTH
from artifactfs.server.web.page_data import (
    activity,
    commit_and_ends,
    diff_lines,
    shown_folder,
    split_path,
)
from artifactfs.server.web.readme import Readmes
from artifactfs.server.web.sessions import COOKIE, LIFETIME_S
from artifactfs.server.web.visitors import (
    FormVisitorOf,
    Visitor,
    VisitorOf,
    back_to,
    check_same_site,
    login_page,
    page_of,
    render,
    sessions_of,
)

router = APIRouter(include_in_schema=False)

_PER_PAGE = 50
_LOG_PAGE = 30
_SHOWN_BYTES = 1024 * 1024
_IMAGE_BYTES = 4 * 1024 * 1024
_STYLE = files("artifactfs.server.web").joinpath("templates/style.css").read_bytes()
_ICON = files("artifactfs.server.web").joinpath("templates/icon.svg").read_bytes()
_FOR_AN_HOUR = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}


@router.get("/ui/style.css")
async def get_style() -> Response:
    return Response(_STYLE, media_type="text/css", headers=_FOR_AN_HOUR)


@router.get("/ui/icon.svg")
async def get_icon() -> Response:
    return Response(_ICON, media_type="image/svg+xml", headers=_FOR_AN_HOUR)


@router.post("/ui/login")
async def log_in(
    request: Request, context: ContextOf, token: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    check_same_site(request)
    cookie = await sessions_of(request).log_in(token.strip())
    if cookie is None:
        return login_page(403, wrong=True)
    answer = back_to("/")
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=LIFETIME_S,
        httponly=True,
        samesite="strict",
        secure=context.settings.secure_cookies,
    )
    return answer


@router.post("/ui/logout")
async def log_out(request: Request) -> Response:
    check_same_site(request)
    await sessions_of(request).log_out(request.cookies.get(COOKIE))
    answer = back_to("/")
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/")
async def get_namespaces(visitor: VisitorOf, context: ContextOf, page: int = 1) -> Response:
    found, info = await list_namespaces(
        *(context.store, visitor.account_id, _PER_PAGE, None, max(1, min(page, 100_000))),
        only=visitor.token.namespaces,
    )
    return render("namespaces.html", visitor, namespaces=found, info=info)


@router.get("/ui/activity")
async def get_activity(visitor: VisitorOf, context: ContextOf) -> Response:
    visitor.caller.check_namespace(None)
    await context.events.flush()
    account = visitor.account_id
    shown = await context.events.store.read(lambda tx: activity(tx, account))
    return render(
        "activity.html", visitor, activity=shown, width=WIDTH, height=HEIGHT, room=HEIGHT - FOOT
    )


@router.get("/ui/ns/{namespace}")
async def get_repos(
    visitor: VisitorOf, context: ContextOf, namespace: str, page: int = 1, search: str = ""
) -> Response:
    query = RepoQuery(
        visitor.account_id,
        (namespace,),
        _PER_PAGE,
        page=max(1, min(page, 100_000)),
        search=search[:200],
        sort="updated_at",
    )
    repos, info = await list_repos(context.store, query)
    return render("repos.html", visitor, namespace=namespace, repos=repos, info=info, search=search)


@router.post("/ui/ns/{namespace}")
async def create_repo(
    request: Request,
    visitor: FormVisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    repo, secret = await repositories.create(
        visitor.account_id,
        namespace,
        name,
        description=None,
        default_branch="main",
        read_only=False,
    )
    return await _tokens_page(request, visitor, context, repo, secret=secret)


async def _repo(visitor: Visitor, repositories: RepositoriesOf, namespace: str, name: str) -> Repo:
    return await repositories.get_ready(visitor.account_id, namespace, name)


@router.get("/ui/ns/{namespace}/{name}")
async def get_tree(
    request: Request,
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    ref: str = "HEAD",
    path: str = "",
) -> Response:
    repo = await _repo(visitor, repositories, namespace, name)

    shown = await read_content(context, repo, lambda content: shown_folder(content, ref, path))
    at = page_of(repo)
    readme = None
    if shown is not None and shown.readme is not None:
        entry, blob = shown.readme
        readmes: Readmes = request.app.state.readmes
        readme = await readmes.html(entry, blob, at, ref, path)
    remote = remote_url(request, context, namespace, name)
    return render(
        "tree.html",
        visitor,
        repo=repo,
        ref=ref,
        path=path,
        crumbs=split_path(path),
        remote=remote,
        pushed=iso_or_none(repo.last_push_at),
        shown=shown,
        readme=readme,
        ancestor=await _ancestor(visitor, repositories, repo),
    )


async def _ancestor(visitor: Visitor, repositories: RepositoriesOf, repo: Repo) -> Repo | None:
    """What it was forked from, if that is there and the visitor may see it."""
    kind, _, full_name = (repo.source or "").partition(":")
    namespace, _, name = full_name.partition("/")
    if kind != "artifacts" or not visitor.token.may_use(namespace):
        return None
    try:
        return await repositories.get_ready(visitor.account_id, namespace, name)
    except Problem:
        return None


@router.get("/ui/ns/{namespace}/{name}/file")
async def get_file(
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    path: str,
    ref: str = "HEAD",
) -> Response:
    repo = await _repo(visitor, repositories, namespace, name)

    def read(content: Content) -> Blob | None:
        entry = content.entry_at(ref, path)
        return None if entry.type == "tree" else content.blob(entry.hash, _SHOWN_BYTES)

    blob = await read_content(context, repo, read)
    if blob is None:  # a link in a README
        return back_to(f"{page_of(repo)}?{urlencode({'ref': ref, 'path': path})}")
    text = None
    if blob.data is not None and b"\0" not in blob.data[:8_000]:
        text = blob.data.decode("utf-8", "replace")
    return render(
        "file.html",
        visitor,
        repo=repo,
        ref=ref,
        path=path,
        crumbs=split_path(path),
        text=text,
        size=blob.size,
        too_large=blob.data is None,
    )


@router.get("/ui/ns/{namespace}/{name}/image")
async def get_image(
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    path: str,
    ref: str = "HEAD",
) -> Response:
    """An image that a README shows, of a kind that can do nothing else."""
    repo = await _repo(visitor, repositories, namespace, name)
    blob = await read_content(context, repo, lambda content: content.file(ref, path, _IMAGE_BYTES))
    kind = sniff(blob.data or b"")
    if not kind.startswith("image/"):
        raise not_found("Image")
    return Response(blob.data, media_type=kind, headers={**SAFE, "Cache-Control": "max-age=3600"})


@router.get("/ui/ns/{namespace}/{name}/log")
async def get_log(
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    ref: str = "HEAD",
    offset: int = 0,
) -> Response:
    repo = await _repo(visitor, repositories, namespace, name)
    start = max(0, min(offset, 1_000_000))

    def read(content: Content) -> list[Any]:
        try:
            found = content.log(ref, _LOG_PAGE + 1, start)
        except NoSuchContent:
            return []
        return [commit_info(commit) for commit in found]

    commits = await read_content(context, repo, read)
    following = start + _LOG_PAGE if len(commits) > _LOG_PAGE else None
    return render(
        "log.html",
        visitor,
        repo=repo,
        ref=ref,
        commits=commits[:_LOG_PAGE],
        following=following,
    )


@router.get("/ui/ns/{namespace}/{name}/commit/{hexadecimal}")
async def get_commit(
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    hexadecimal: str,
) -> Response:
    repo = await _repo(visitor, repositories, namespace, name)
    commit, ends = await read_content(
        context, repo, lambda content: commit_and_ends(content, hexadecimal)
    )
    found = None if ends is None else await diff(context, repo, ends, (), _SHOWN_BYTES)
    return render("commit.html", visitor, repo=repo, commit=commit, patch=diff_lines(found))


@router.get("/ui/ns/{namespace}/{name}/tokens")
async def get_tokens(
    request: Request,
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
) -> Response:
    repo = await _repo(visitor, repositories, namespace, name)
    return await _tokens_page(request, visitor, context, repo)


@router.post("/ui/ns/{namespace}/{name}/tokens")
async def create_token(
    request: Request,
    visitor: FormVisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    scope: Annotated[str, Form()] = "read",
    ttl: Annotated[int, Form()] = 86_400,
) -> Response:
    wanted: Scope = "write" if scope == "write" else "read"
    _, secret = await repositories.create_token(visitor.account_id, namespace, name, wanted, ttl)
    repo = await _repo(visitor, repositories, namespace, name)
    return await _tokens_page(request, visitor, context, repo, secret=secret)


@router.post("/ui/ns/{namespace}/{name}/tokens/{token_id}/revoke")
async def revoke_token(
    visitor: FormVisitorOf, repositories: RepositoriesOf, namespace: str, name: str, token_id: str
) -> Response:
    await repositories.revoke_token(visitor.account_id, namespace, token_id)
    return back_to(f"/ui/ns/{namespace}/{name}/tokens")


async def _tokens_page(
    request: Request,
    visitor: Visitor,
    context: ContextOf,
    repo: Repo,
    *,
    secret: str | None = None,
) -> Response:
    found, info = await list_tokens(context.store, repo.id, "all", PageQuery(1, 100))
    return render(
        "tokens.html",
        visitor,
        repo=repo,
        remote=remote_url(request, context, repo.namespace, repo.name),
        tokens=[token_info(token) for token in found],
        info=info,
        secret=secret,
    )
