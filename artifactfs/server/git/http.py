"""The Git endpoints: who may do what to which repository.

``{origin}/git/{ns}/{repo}.git`` and ``/{ns}/{repo}.git``, as gitprotocol-http(5) wants them. The
names only ever look up a row; folders on disk are named by ids.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import trio

from artifactfs.pktline import FLUSH, encode
from artifactfs.server.context import Context
from artifactfs.server.events.access_log import RequestRecord
from artifactfs.server.events.events import Event, error_type
from artifactfs.server.git.exchange import (
    NO_CACHE,
    BadBody,
    ClientGone,
    Exchange,
    Message,
    Receive,
    Send,
)
from artifactfs.server.git.process import run_bounded
from artifactfs.server.git.receive_pack import ReceivePack
from artifactfs.server.git.stream import environment_for, refuse, refuse_away, refuse_busy
from artifactfs.server.git.upload_pack import UploadPack
from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import DatabaseAway
from artifactfs.server.metadata.limits import RateLimiter
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import is_scarcity

log = logging.getLogger(__name__)

_PATH = re.compile(  # a NUL is in no name, and PostgreSQL refuses to look for it
    r"/(?:git/)?(?P<namespace>[^/\0]+)/(?P<repo>[^/\0]+?)(?:\.git)?"
    r"/(?P<what>info/refs|git-upload-pack|git-receive-pack|HEAD|objects/.*)",
    re.DOTALL,
)
_PROTOCOL = re.compile(rb"[A-Za-z0-9.=:_-]{1,200}")
_ADVERTISE_S = 60.0
_STRANGERS = 100
"""Refusals of unknown tokens that are recorded for one namespace in a window of time."""
_SERVICES = (b"git-upload-pack", b"git-receive-pack")


class Refused(Exception):
    """The request gets this status and text. `headers` go with it."""

    def __init__(
        self, status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


_UNAUTHORIZED = (
    401,
    "Authentication required",
    ((b"www-authenticate", b'Basic realm="Artifacts"'),),
)


@dataclass(frozen=True, slots=True)
class Route:
    """A Git path that was recognised."""

    namespace: str
    repo: str
    what: str


def route_of(path: str) -> Route | None:
    """The Git route a decoded URL path names, None if it is not one."""
    match = _PATH.fullmatch(path)
    if match is None or path.startswith(("/client/", "/v1/api/", "/ui/")):
        return None
    return Route(match["namespace"], match["repo"], match["what"])


class GitHTTP:
    """The ASGI application behind the Git paths."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._upload_pack = UploadPack(context)
        self._receive_pack = ReceivePack(context)
        self._strangers = RateLimiter(_STRANGERS, context.limits.window_s)

    async def __call__(self, route: Route, scope: Message, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope["method"], scope["path"])
        idle_s = self._context.limits.client_idle_s
        exchange = Exchange(scope, receive, send, record, self._context.access_log, idle_s=idle_s)
        try:
            await self._serve(route, exchange)
        except Refused as refused:
            await self._report(route, exchange, refused)
            await exchange.answer(
                refused.status, refused.text.encode() + b"\n", headers=refused.headers
            )
        except BadBody as error:
            await refuse(self._context, exchange.repo, exchange, error.status, str(error))
        except OSError as error:
            if exchange.started or not is_scarcity(error):
                raise
            log.error("no room for git: %s", error.strerror)
            await refuse_busy(self._context, exchange.repo, exchange)
        except DatabaseAway as error:
            if exchange.started:
                raise
            log.error("%s failed: %s", exchange.record.path, error)
            await refuse_away(self._context, exchange.repo, exchange)
        except ClientGone:
            record.status = record.status or 499
            self._context.access_log.write(record)

    async def _serve(self, route: Route, exchange: Exchange) -> None:
        service = _service_of(route, exchange)
        exchange.record.service = service.decode()
        push = service == b"git-receive-pack"
        repo = exchange.repo = await self._authorize(route, exchange, push=push)
        wait = await self._context.git_limiter.take(repo.namespace)
        if wait is not None:
            raise Refused(429, "Too many requests", ((b"retry-after", b"%d" % wait),))
        protocol = _protocol_of(exchange)
        if route.what == "info/refs":
            await self._advertise(repo, exchange, service, protocol)
        elif push:
            await self._receive_pack.serve(repo, exchange, protocol)
        else:
            version = protocol_version(protocol)
            await self._upload_pack.serve(repo, exchange, protocol, version)

    async def _authorize(self, route: Route, exchange: Exchange, *, push: bool) -> Repo:
        """The repository, if the request may do that to it. Raises: Refused."""
        header = exchange.headers.get(b"authorization")
        presented = tokens.credential_from_header(
            None if header is None else header.decode("latin-1")
        )
        catalog = self._context.catalog
        repo = await catalog.repo(route.namespace, route.repo)
        if presented is None:
            if repo is None or push or not repo.anonymous_read:
                raise Refused(*_UNAUTHORIZED)
            return _ready(repo)
        token = await catalog.repo_token(presented)
        if token is None:
            raise Refused(403, "Invalid or expired token")
        exchange.actor = token.id
        if token.state(now_ms()) != "active":
            raise Refused(403, "Invalid or expired token")
        if repo is None or repo.id != token.repo_id:
            raise Refused(403, "Invalid or expired token")
        _ready(repo)
        if push and token.scope != "write":
            raise Refused(403, "Insufficient permissions")
        if push and repo.read_only:
            raise Refused(403, "The repository is read-only")
        return repo

    async def _advertise(
        self, repo: Repo, exchange: Exchange, service: bytes, protocol: str | None
    ) -> None:
        exchange.record.command = "advertise"
        content_type = b"application/x-" + service + b"-advertisement"
        fetch = service == b"git-upload-pack"
        if fetch and protocol_version(protocol) == 2:
            await exchange.answer(200, self._context.advertisement, content_type, NO_CACHE)
            return
        context = self._context
        with trio.move_on_after(_ADVERTISE_S):
            status, output, stderr = await run_bounded(
                [
                    context.git,
                    "upload-pack" if fetch else "receive-pack",
                    "--http-backend-info-refs",
                    str(context.layout.gitdir(repo.id)),
                ],
                environment=environment_for(context, protocol),
                deadline_s=_ADVERTISE_S,
            )
            if status != 0:
                log.error("advertising refs of %s failed: %s", repo.full_name, stderr)
                raise Refused(500, "The repository cannot be read")
            head = encode([b"# service=" + service + b"\n", FLUSH])
            await exchange.answer(200, head + output, content_type, NO_CACHE)
            return
        raise Refused(503, "Git took too long", ((b"retry-after", b"5"),))

    async def _report(self, route: Route, exchange: Exchange, refused: Refused) -> None:
        """Record a refusal as an event, if it concerns a namespace that exists."""
        if refused.status == 401:
            return
        row = await self._context.store.row(
            "SELECT account_id FROM namespaces WHERE name = :name", {"name": route.namespace}
        )
        if row is None:
            return
        # Without a token of ours anybody may come: that must not fill a log.
        if exchange.actor is None and self._strangers.take(route.namespace) is not None:
            return
        repo = await self._context.catalog.repo(route.namespace, route.repo)
        self._context.events.record(
            Event(
                row["account_id"],
                route.namespace,
                "" if repo is None else repo.name,
                error_type(refused.status),
                exchange.record.ms,
                error_message=refused.text,
            )
        )


def _ready(repo: Repo) -> Repo:
    """Raises: Refused while a fork or import goes on."""
    if repo.status != "ready":
        raise Refused(409, f"The repository is still {repo.status}", ((b"retry-after", b"1"),))
    return repo


def _service_of(route: Route, exchange: Exchange) -> bytes:
    if route.what == "info/refs":
        if exchange.method not in ("GET", "HEAD"):
            raise Refused(405, "Method not allowed", ((b"allow", b"GET, HEAD"),))
        for part in exchange.query.split(b"&"):
            name, _, value = part.partition(b"=")
            if name == b"service" and value in _SERVICES:
                return value
        raise Refused(403, "Only smart HTTP is served: git 1.6.6 or newer")
    if route.what not in ("git-upload-pack", "git-receive-pack"):
        raise Refused(403, "Only smart HTTP is served: git 1.6.6 or newer")
    if exchange.method != "POST":
        raise Refused(405, "Method not allowed", ((b"allow", b"POST"),))
    service = route.what.encode()
    expected = b"application/x-" + service + b"-request"
    if exchange.headers.get(b"content-type", b"").partition(b";")[0].strip() != expected:
        raise Refused(415, f"Content-Type must be {expected.decode()}")
    return service


def _protocol_of(exchange: Exchange) -> str | None:
    value = exchange.headers.get(b"git-protocol")
    if value is None:
        return None
    if not _PROTOCOL.fullmatch(value):
        raise Refused(400, "The Git-Protocol header is malformed")
    return value.decode()


def protocol_version(protocol: str | None) -> int:
    """The version that a Git-Protocol header asks for: the highest of its ``version`` keys."""
    best = 0
    for part in (protocol or "").split(":"):
        if part in ("version=1", "version=2"):
            best = max(best, int(part[-1]))
    return best
