"""The whole ASGI application: Git paths go straight to git, everything else to FastAPI."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline

import artifactfs
from artifactfs.server.api import account as api_account
from artifactfs.server.api import branches as api_branches
from artifactfs.server.api import content as api_content
from artifactfs.server.api import namespaces as api_namespaces
from artifactfs.server.api import public as api_public
from artifactfs.server.api import repos as api_repos
from artifactfs.server.api import writing as api_writing
from artifactfs.server.api.base import (
    ERROR_ANSWERS,
    Caller,
    caller_by_path,
    caller_by_token,
    error_answer,
    install_error_handlers,
)
from artifactfs.server.context import Context
from artifactfs.server.cross_origin import CrossOrigin
from artifactfs.server.events.access_log import RequestRecord
from artifactfs.server.events.events import Event, error_type
from artifactfs.server.git.exchange import (
    BadBody,
    Message,
    Patience,
    Receive,
    Send,
    close_if_unread,
)
from artifactfs.server.git.http import GitHTTP, route_of
from artifactfs.server.jobs.jobs import Jobs
from artifactfs.server.jobs.repositories import Repositories
from artifactfs.server.problems import Code, Problem
from artifactfs.server.web import merge_pages, pages
from artifactfs.server.web.readme import Readmes
from artifactfs.server.web.sessions import Sessions
from artifactfs.server.web.visitors import LoginNeeded, login_page, problem_page

_IN_NAMESPACE = (*(api_repos.router, api_content.router, api_writing.router, api_branches.router),)

_BASES = (
    ("/client/v4/accounts/{account_id}/artifacts", caller_by_path),
    ("/v1/api", caller_by_token),
)


def build_api(context: Context, repositories: Repositories, jobs: Jobs) -> FastAPI:
    """The control plane: both base paths, OpenAPI at /openapi.json, docs at /docs."""
    app = FastAPIOffline(
        title="ArtifactFS server",
        version=artifactfs.__version__,
        description="Git repositories for agents: create, fork, import, read and hand out tokens.",
        separate_input_output_schemas=False,
    )
    app.state.context = context
    app.state.repositories = repositories
    app.state.jobs = jobs
    app.state.sessions = Sessions(context.catalog)
    app.state.readmes = Readmes()
    install_error_handlers(app, problem_page)
    app.add_exception_handler(LoginNeeded, lambda request, error: login_page())
    app.include_router(api_public.router)
    app.include_router(pages.router)
    app.include_router(merge_pages.router)
    app.include_router(
        api_account.graphql_router,
        prefix="/client/v4",
        dependencies=[Depends(caller_by_token)],
        responses=ERROR_ANSWERS,
    )
    for router, below in (
        (api_account.router, ""),
        (api_namespaces.router, "/namespaces"),
        *((router, "/namespaces/{namespace}") for router in _IN_NAMESPACE),
    ):
        for base, caller in _BASES:
            app.include_router(
                router,
                prefix=base + below,
                dependencies=[Depends(caller)],
                responses=ERROR_ANSWERS,
            )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, without the 422 that it adds: invalid input is a 400 here."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        for path in document["paths"].values():
            for operation in path.values():
                answer = operation.get("responses", {}).get("422", {})
                if "HTTPValidationError" in str(answer):
                    del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


class Application:
    """Dispatches requests, logs them, and bounds the bodies of the control plane."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.repositories = Repositories(context)
        self.jobs = Jobs(context, self.repositories)
        self.api = build_api(context, self.repositories, self.jobs)
        self._git = GitHTTP(context)
        self._cross_origin = CrossOrigin(context.settings.cors_origins)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it is accepted: a 403
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        preflight = self._cross_origin.preflight(scope["method"], scope["path"], headers)
        if preflight is not None:
            await send({"type": "http.response.start", "status": 204, "headers": preflight})
            await send({"type": "http.response.body", "body": b""})
            return
        shared = self._cross_origin.headers(scope["path"], headers.get(b"origin"))

        async def send_to_origin(message: Message) -> None:
            if message["type"] == "http.response.start" and shared:
                message = {**message, "headers": [*message["headers"], *shared]}
            await send(message)

        route = route_of(scope["path"])
        if route is not None:
            await self._git(route, scope, receive, send_to_origin)
        else:
            await self._control(scope, receive, send_to_origin)

    async def _control(self, scope: Message, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope["method"], scope["path"])
        head = scope["method"] == "HEAD"
        if head:  # wherever GET is: the same answer without its body
            scope = {**scope, "method": "GET", "head": True}
        limits = self._context.limits
        patience = Patience(receive, limits.client_idle_s)
        state: dict[str, Any] = {}
        scope["state"] = state

        def refuse(code: Code, text: str) -> Problem:
            # FastAPI makes a 400 of what is raised here; the handler of errors looks at the state.
            state["body_problem"] = Problem(code, text)
            return Problem(code, text)

        async def bounded_receive() -> Message:
            if state.get("body_read", False):
                return await receive()  # waits for the client to go
            try:
                message = await patience.receive()
            except BadBody as error:
                raise refuse(Code.TOO_SLOW, f"Timeout: {error}") from None
            state["body_read"] = not message.get("more_body", False)
            record.bytes_in += len(message.get("body", b""))
            if record.bytes_in > limits.control_body_bytes:
                raise refuse(Code.MEMORY_LIMIT, "The request body is too large")
            return message

        async def logged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                close_if_unread(message, scope, body_read=state.get("body_read", False))
            elif message["type"] == "http.response.body":
                if head:
                    message = {**message, "body": b""}
                record.bytes_out += len(message.get("body", b""))
                if not message.get("more_body", False):
                    self._context.access_log.write(record)
                    self._report(scope, state, record)
            await send(message)

        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            problem = Problem(Code.INVALID_INPUT, "NUL is not part of any name")
            await error_answer(problem)(scope, bounded_receive, logged_send)
            return
        await self.api(scope, bounded_receive, logged_send)

    def _report(self, scope: Message, state: dict[str, Any], record: RequestRecord) -> None:
        """Record a failed request of a known caller as an event. One that is refused because there
        are too many counts for the account, whatever it was about."""
        caller = state.get("caller")
        params = scope.get("path_params", {})
        if record.status < 400 or not isinstance(caller, Caller):
            return
        if "namespace" not in params and record.status != Code.RATE_LIMITED.status:
            return
        problem = state.get("problem")
        self._context.events.record(
            Event(
                caller.account_id,
                params.get("namespace", ""),
                params.get("name", ""),
                error_type(record.status),
                record.ms,
                error_message=problem.message if isinstance(problem, Problem) else "",
            )
        )
