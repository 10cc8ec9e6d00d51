"""What all routers of the control plane share: who calls, the envelope, the errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import compile_path

from artifactfs.server.api.schemas import ErrorEnvelope
from artifactfs.server.cluster.standing import Lost
from artifactfs.server.context import Context
from artifactfs.server.jobs.jobs import Jobs
from artifactfs.server.jobs.repositories import Repositories
from artifactfs.server.metadata.database import DatabaseAway, DatabaseError, RefusedValue
from artifactfs.server.metadata.records import ApiToken
from artifactfs.server.problems import Code, Problem, database_away, is_scarcity

log = logging.getLogger(__name__)

_READING = ("GET", "HEAD")
ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": text}
    for status, text in (
        (400, "Invalid input"),
        (403, "Authentication error"),
        (404, "Not found"),
        (409, "Already exists, or not ready"),
        (413, "Too large"),
        (422, "The remote asks for credentials"),
        (429, "Too many requests; see Retry-After"),
        (502, "The remote cannot be reached"),
        (503, "Too much to do; see Retry-After"),
    )
}

_bearer = HTTPBearer(auto_error=False, description="API token")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and the account that the request is about."""

    token: ApiToken

    @property
    def account_id(self) -> str:
        return self.token.account_id

    def check_namespace(self, namespace: str | None) -> None:
        """`None`: the whole account. Raises: Problem where the token is not for it."""
        if namespace is None and self.token.namespaces is not None:
            raise Problem(Code.AUTHENTICATION, "Authentication error: the token is for namespaces")
        if namespace is not None and not self.token.may_use(namespace):
            text = "Authentication error: the token is for other namespaces"
            raise Problem(Code.AUTHENTICATION, text)


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.context)


def repositories_of(request: Request) -> Repositories:
    return cast(Repositories, request.app.state.repositories)


def jobs_of(request: Request) -> Jobs:
    return cast(Jobs, request.app.state.jobs)


async def _authenticate(
    request: Request, credentials: HTTPAuthorizationCredentials | None
) -> Caller:
    context = context_of(request)
    token = None
    if credentials is not None and credentials.scheme.lower() == "bearer":
        token = await context.catalog.api_token(credentials.credentials)
    if token is None or token.revoked_at is not None:
        raise Problem(Code.AUTHENTICATION, "Authentication error")
    if request.method not in _READING and token.permission != "edit":
        raise Problem(Code.AUTHENTICATION, "Authentication error: the token may only read")
    caller = request.state.caller = Caller(token)
    wait = await context.control_limiter.take(token.account_id)
    if wait is not None:
        raise Problem(Code.RATE_LIMITED, "Too many requests", retry_after=wait)
    if "namespace" in request.path_params:
        caller.check_namespace(request.path_params["namespace"])
    return caller


Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def caller_by_path(
    request: Request,
    credentials: Credentials,
    account_id: Annotated[str, Path(max_length=64)],
) -> Caller:
    """For ``/client/v4/accounts/{account_id}/…``: the token must belong to that account."""
    caller = await _authenticate(request, credentials)
    if caller.account_id != account_id:
        raise Problem(Code.AUTHENTICATION, "Authentication error")
    return caller


async def caller_by_token(request: Request, credentials: Credentials) -> Caller:
    """For ``/v1/api/…``: the account is that of the token."""
    return await _authenticate(request, credentials)


def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


CallerOf = Annotated[Caller, Depends(_caller, use_cache=False)]
ContextOf = Annotated[Context, Depends(context_of)]
JobsOf = Annotated[Jobs, Depends(jobs_of)]
RepositoriesOf = Annotated[Repositories, Depends(repositories_of)]
NamespaceName = Annotated[str, Path(max_length=200)]
RepoName = Annotated[str, Path(max_length=200)]


def remote_url(request: Request, context: Context, namespace: str, name: str) -> str:
    """The Git remote of a repository, at the origin the client came by."""
    origin = context.settings.public_url
    if origin is None:
        origin = f"{request.url.scheme}://{request.url.netloc}"
    return f"{origin.rstrip('/')}/git/{namespace}/{name}.git"


def error_answer(problem: Problem, more: Mapping[str, str] | None = None) -> JSONResponse:
    """The envelope for a problem; `more` are headers."""
    item: dict[str, Any] = {"code": problem.code.number, "message": problem.message}
    if problem.pointer is not None:
        item["source"] = {"pointer": problem.pointer}
    if problem.conflicts:
        item["conflicts"] = [asdict(conflict) for conflict in problem.conflicts]
    headers = dict(more or {})
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    elif problem.code.status == 409:
        headers["x-should-retry"] = "false"
    return JSONResponse(
        {"result": None, "success": False, "errors": [item], "messages": []},
        status_code=problem.code.status,
        headers=headers,
    )


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """The methods that `path` knows (RFC 9110, 10.2.1), by the document of the interface."""
    methods: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        pattern, _, _ = compile_path(template.replace("/{path}", "/{path:path}"))
        if pattern.match(path):
            methods |= {method.upper() for method in operations}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def install_error_handlers(app: FastAPI, page_for: Callable[[Problem], Response]) -> None:
    """Every error of the control plane is an envelope; on the web page it is a page."""

    def answer(request: Request, problem: Problem) -> Response:
        request.state.problem = problem
        path = request.url.path
        if path == "/" or path.startswith("/ui/"):
            return page_for(problem)
        return error_answer(problem)

    async def on_problem(request: Request, error: Exception) -> Response:
        return answer(request, cast(Problem, error))

    async def on_invalid(request: Request, error: Exception) -> Response:
        first = cast(RequestValidationError, error).errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        pointer = "/" + "/".join(where) if where else None
        code = Code.INVALID_REPO_NAME if pointer == "/name" else Code.INVALID_INPUT
        if pointer == "/ttl":
            code = Code.INVALID_TTL
        problem = Problem(code, str(first["msg"]), pointer=pointer)
        return answer(request, problem)

    async def on_http(request: Request, error: Exception) -> Response:
        in_body = getattr(request.state, "body_problem", None)
        if in_body is not None:
            return answer(request, in_body)
        status = cast(StarletteHTTPException, error).status_code
        code = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}.get(status, Code.INVALID_INPUT)
        problem = Problem(code, str(cast(StarletteHTTPException, error).detail))
        response = answer(request, problem)
        if status == 405:
            said = (cast(StarletteHTTPException, error).headers or {}).get("Allow", "")
            methods = allowed_methods(app, request.url.path)
            response.headers["Allow"] = ", ".join(methods) or said
        return response

    async def on_full_disk(request: Request, error: Exception) -> Response:
        log.error("%s %s failed: %s", request.method, request.url.path, error)
        if isinstance(error, OSError) and is_scarcity(error):
            return answer(request, Problem(Code.BUSY, "Too much to do", retry_after=5))
        return answer(request, Problem(Code.INTERNAL_ERROR, "The server cannot use its disk"))

    async def on_database(request: Request, error: Exception) -> Response:
        if isinstance(error, RefusedValue):
            return answer(request, Problem(Code.INVALID_INPUT, "A value cannot be stored"))
        log.error("%s %s failed: %s", request.method, request.url.path, error)
        if isinstance(error, DatabaseAway):
            return answer(request, database_away())
        return answer(request, Problem(Code.INTERNAL_ERROR, "The server cannot use its disk"))

    async def on_lost(request: Request, error: Exception) -> Response:
        return answer(request, database_away())

    async def on_crash(request: Request, error: Exception) -> Response:
        return answer(request, Problem(Code.INTERNAL_ERROR, "Internal error"))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(OSError, on_full_disk)
    app.add_exception_handler(DatabaseError, on_database)
    app.add_exception_handler(Lost, on_lost)
    app.add_exception_handler(Exception, on_crash)
