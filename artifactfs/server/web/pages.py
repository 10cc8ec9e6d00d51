"""The web page: rendered on the server, no script, nothing from elsewhere.

Login by API token. State changes need a form key and a same-site request besides the cookie.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, cast
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from artifactfs.server.api.base import Caller, ContextOf, RepositoriesOf, remote_url
from artifactfs.server.api.content import read_content
from artifactfs.server.api.paging import (
    PageQuery,
    RepoQuery,
    list_namespaces,
    list_repos,
    list_tokens,
)
from artifactfs.server.api.repos import token_info
from artifactfs.server.content.differences import diff
from artifactfs.server.content.objects import Content, NoSuchContent
from artifactfs.server.events.commits import commit_info
from artifactfs.server.metadata.clock import iso, iso_or_none
from artifactfs.server.metadata.records import ApiToken, Repo, Scope
from artifactfs.server.problems import Code, Problem
from artifactfs.server.web.charts import FOOT, HEIGHT, WIDTH
from artifactfs.server.web.page_data import (
    activity,
    commit_and_ends,
    diff_lines,
    ref_names,
    split_path,
)
from artifactfs.server.web.sessions import COOKIE, LIFETIME_S, Session, Sessions

router = APIRouter(include_in_schema=False)

_PER_PAGE = 50
_LOG_PAGE = 30
_SHOWN_BYTES = 1024 * 1024
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_templates = Environment(
    loader=PackageLoader("artifactfs.server.web"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
)
_templates.globals.update(query=lambda **fields: urlencode(fields), iso=iso)
_STYLE = files("artifactfs.server.web").joinpath("templates/style.css").read_bytes()
_ICON = files("artifactfs.server.web").joinpath("templates/icon.svg").read_bytes()
_FOR_AN_HOUR = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}


class LoginNeeded(Exception):
    """The page is only for somebody who is logged in."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who is logged in."""

    session: Session
    token: ApiToken

    @property
    def account_id(self) -> str:
        return self.token.account_id

    @property
    def caller(self) -> Caller:
        return Caller(self.token)

    @property
    def may_edit(self) -> bool:
        return self.token.permission == "edit"


def _sessions(request: Request) -> Sessions:
    return cast(Sessions, request.app.state.sessions)


async def _visitor(request: Request) -> Visitor:
    found = _sessions(request).find(request.cookies.get(COOKIE))
    if found is None:
        raise LoginNeeded
    visitor = Visitor(*found)
    if "namespace" in request.path_params:
        visitor.caller.check_namespace(request.path_params["namespace"])
    return visitor


VisitorOf = Annotated[Visitor, Depends(_visitor)]


async def _form_visitor(
    request: Request, visitor: VisitorOf, form_key: Annotated[str, Form(max_length=100)] = ""
) -> Visitor:
    """A visitor whose form was made by us, and who may change things."""
    _check_same_site(request)
    if not hmac.compare_digest(form_key.encode(), visitor.session.form_key.encode()):
        raise Problem(Code.AUTHENTICATION, "The form is out of date; go back and try again")
    if not visitor.may_edit:
        raise Problem(Code.AUTHENTICATION, "The token may only read")
    return visitor


FormVisitorOf = Annotated[Visitor, Depends(_form_visitor)]


def _check_same_site(request: Request) -> None:
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.url.netloc:
        raise Problem(Code.AUTHENTICATION, "The request comes from another site")


def _page(name: str, visitor: Visitor | None, status: int = 200, **values: Any) -> HTMLResponse:
    text = _templates.get_template(name).render(visitor=visitor, **values)
    return HTMLResponse(text, status_code=status, headers=_SECURITY)


def _back_to(path: str) -> Response:
    return RedirectResponse(path, status_code=303, headers=_SECURITY)


def login_page(status: int = 401, *, wrong: bool = False) -> Response:
    """The form that asks for an API token."""
    return _page("login.html", None, status, wrong=wrong)


def problem_page(problem: Problem) -> Response:
    """An error for a person."""
    return _page("problem.html", None, problem.code.status, message=problem.message)


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
    _check_same_site(request)
    cookie = _sessions(request).log_in(token.strip())
    if cookie is None:
        return login_page(403, wrong=True)
    answer = _back_to("/")
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
    _check_same_site(request)
    _sessions(request).log_out(request.cookies.get(COOKIE))
    answer = _back_to("/")
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/")
async def get_namespaces(visitor: VisitorOf, context: ContextOf, page: int = 1) -> Response:
    found, info = list_namespaces(
        *(context.store, visitor.account_id, _PER_PAGE, None, max(1, min(page, 100_000))),
        only=visitor.token.namespaces,
    )
    return _page("namespaces.html", visitor, namespaces=found, info=info)


@router.get("/ui/activity")
async def get_activity(visitor: VisitorOf, context: ContextOf) -> Response:
    visitor.caller.check_namespace(None)
    await context.events.flush()
    account = visitor.account_id
    shown = await context.events.store.read_in_thread(lambda db: activity(db, account))
    return _page(
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
    repos, info = list_repos(context.store, query)
    return _page("repos.html", visitor, namespace=namespace, repos=repos, info=info, search=search)


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
    return _tokens_page(request, visitor, context, repo, secret=secret)


def _repo(visitor: Visitor, repositories: RepositoriesOf, namespace: str, name: str) -> Repo:
    return repositories.get_ready(visitor.account_id, namespace, name)


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
    repo = _repo(visitor, repositories, namespace, name)

    def read(content: Content) -> dict[str, Any]:
        refs = ref_names(content)
        try:
            tree = content.entry_at(ref, path).hash if path else str(content.commit_id(ref))
            entries = content.tree(tree)
        except NoSuchContent:
            if path or ref != "HEAD":
                raise
            return {"entries": None, "refs": refs, "latest": None}
        latest = content.log(ref, 1, 0)
        return {"entries": entries, "refs": refs, "latest": commit_info(latest[0])}

    values = await read_content(context, repo, read)
    return _page(
        "tree.html",
        visitor,
        repo=repo,
        ref=ref,
        path=path,
        crumbs=split_path(path),
        remote=remote_url(request, context, namespace, name),
        pushed=iso_or_none(repo.last_push_at),
        **values,
    )


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
    repo = _repo(visitor, repositories, namespace, name)
    blob = await read_content(context, repo, lambda content: content.file(ref, path, _SHOWN_BYTES))
    text = None
    if blob.data is not None and b"\0" not in blob.data[:8_000]:
        text = blob.data.decode("utf-8", "replace")
    return _page(
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
    repo = _repo(visitor, repositories, namespace, name)
    start = max(0, min(offset, 1_000_000))

    def read(content: Content) -> list[Any]:
        try:
            found = content.log(ref, _LOG_PAGE + 1, start)
        except NoSuchContent:
            return []
        return [commit_info(commit) for commit in found]

    commits = await read_content(context, repo, read)
    following = start + _LOG_PAGE if len(commits) > _LOG_PAGE else None
    return _page(
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
    repo = _repo(visitor, repositories, namespace, name)
    commit, ends = await read_content(
        context, repo, lambda content: commit_and_ends(content, hexadecimal)
    )
    found = None if ends is None else await diff(context, repo, ends, (), _SHOWN_BYTES)
    return _page("commit.html", visitor, repo=repo, commit=commit, patch=diff_lines(found))


@router.get("/ui/ns/{namespace}/{name}/tokens")
async def get_tokens(
    request: Request,
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
) -> Response:
    repo = _repo(visitor, repositories, namespace, name)
    return _tokens_page(request, visitor, context, repo)


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
    repo = _repo(visitor, repositories, namespace, name)
    return _tokens_page(request, visitor, context, repo, secret=secret)


@router.post("/ui/ns/{namespace}/{name}/tokens/{token_id}/revoke")
async def revoke_token(
    visitor: FormVisitorOf, repositories: RepositoriesOf, namespace: str, name: str, token_id: str
) -> Response:
    await repositories.revoke_token(visitor.account_id, namespace, token_id)
    return _back_to(f"/ui/ns/{namespace}/{name}/tokens")


def _tokens_page(
    request: Request,
    visitor: Visitor,
    context: ContextOf,
    repo: Repo,
    *,
    secret: str | None = None,
) -> Response:
    found, info = list_tokens(context.store, repo.id, "all", PageQuery(1, 100))
    return _page(
        "tokens.html",
        visitor,
        repo=repo,
        remote=remote_url(request, context, repo.namespace, repo.name),
        tokens=[token_info(token) for token in found],
        info=info,
        secret=secret,
    )
