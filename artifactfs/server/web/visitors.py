"""Who looks at the web page, and how a page is answered.

State changes need a form key and a same-site request besides the cookie. The only script is the one
of `copy.js`, by its hash: nothing that a repository holds can become another.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any, cast
from urllib.parse import quote, urlencode, urlsplit

from fastapi import Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from artifactfs.server.api.base import Caller
from artifactfs.server.metadata.clock import iso
from artifactfs.server.metadata.records import ApiToken, Repo
from artifactfs.server.problems import Code, Problem
from artifactfs.server.web.page_data import size_text
from artifactfs.server.web.sessions import COOKIE, Session, Sessions

_SCRIPT = files("artifactfs.server.web").joinpath("templates/copy.js").read_text()
_SCRIPT_HASH = f"sha256-{b64encode(sha256(_SCRIPT.encode()).digest()).decode()}"
SECURITY = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'self'; img-src 'self'; script-src '{_SCRIPT_HASH}'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
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
_templates.filters["size"] = size_text
_templates.globals.update(
    query=lambda **fields: urlencode(fields),
    iso=iso,
    copy_script=Markup(f"<script>{_SCRIPT}</script>"),  # ours
)


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


def sessions_of(request: Request) -> Sessions:
    return cast(Sessions, request.app.state.sessions)


async def _visitor(request: Request) -> Visitor:
    found = await sessions_of(request).find(request.cookies.get(COOKIE))
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
    check_same_site(request)
    if not hmac.compare_digest(form_key.encode(), visitor.session.form_key.encode()):
        raise Problem(Code.AUTHENTICATION, "The form is out of date; go back and try again")
    if not visitor.may_edit:
        raise Problem(Code.AUTHENTICATION, "The token may only read")
    return visitor


FormVisitorOf = Annotated[Visitor, Depends(_form_visitor)]


def check_same_site(request: Request) -> None:
    """Raises: Problem for a form of another site."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.url.netloc:
        raise Problem(Code.AUTHENTICATION, "The request comes from another site")


def render(name: str, visitor: Visitor | None, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from a template."""
    text = _templates.get_template(name).render(visitor=visitor, **values)
    return HTMLResponse(text, status_code=status, headers=SECURITY)


def page_of(repo: Repo) -> str:
    """The path of the page of a repository."""
    return f"/ui/ns/{quote(repo.namespace)}/{quote(repo.name)}"


def back_to(path: str) -> Response:
    """After a form: the page that shows what it did."""
    return RedirectResponse(path, status_code=303, headers=SECURITY)


def login_page(status: int = 401, *, wrong: bool = False) -> Response:
    """The form that asks for an API token."""
    return render("login.html", None, status, wrong=wrong)


def problem_page(problem: Problem) -> Response:
    """An error for a person."""
    return render("problem.html", None, problem.code.status, message=problem.message)
