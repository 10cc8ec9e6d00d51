"""Imports: a copy of a repository of another Git server, over https.

The remote is looked at before the import is accepted, so that a wrong URL, a private repository
or a missing branch is told at once; the transfer itself is `git fetch` in the background.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

import httpx
import trio

from artifactfs.redact import redact
from artifactfs.server.context import Context
from artifactfs.server.events.network_guard import Forbidden, Target, Unresolvable, check_url
from artifactfs.server.jobs.remote_fetch import (
    Credentials,
    ImportFailed,
    RemoteFetch,
    refspecs_of,
)
from artifactfs.server.metadata import catalog
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import Transaction
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem
from artifactfs.server.storage.gitdir import create_gitdir, own_bytes

_REDIRECTS = 5
_LOOK_S = 30.0
_ADVERTISEMENT_BYTES = 64 * 1024 * 1024
_REF = re.compile(rb"([0-9a-f]{40})[ \t](refs/heads/[^\0\n]+|HEAD)")
_DUMB = re.compile(rb"[0-9a-f]{40}\trefs/")
"""``info/refs`` of a server that only hands out files (gitprotocol-http(5))."""
_SYMREF = re.compile(rb"symref=HEAD:refs/heads/(\S+)")


@dataclass(frozen=True, slots=True)
class Look:
    """What the remote advertises. `url` is where redirects led."""

    url: str
    default_branch: str | None
    branches: frozenset[str]


async def _get(target: Target, path: str, credentials: Credentials | None) -> httpx.Response:
    """One GET to the checked address, with the name it goes by in Host and TLS."""
    parts = urlsplit(target.url)
    shown = f"[{target.address}]" if ":" in target.address else target.address
    url = f"{target.scheme}://{shown}:{target.port}{path}"
    if parts.query:
        raise Forbidden("the URL must not have a query")
    async with httpx.AsyncClient(timeout=_LOOK_S, trust_env=False) as client:
        request = client.build_request(
            "GET",
            url,
            headers={
                "Host": parts.netloc,
                "User-Agent": "git/2.39 artifacts-server",
                **({"Authorization": credentials.header} if credentials is not None else {}),
            },
            extensions={"sni_hostname": target.host},
        )
        answer = await client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > _ADVERTISEMENT_BYTES:
                    raise ImportFailed("the remote advertises too much")
        finally:
            await answer.aclose()
    return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(body))


async def look(url: str, *, allow_private: bool, credentials: Credentials | None = None) -> Look:
    """Ask the remote for its refs.

    Follows redirects, each checked like the first URL; `credentials` are for that alone.
    Raises: Problem.
    """
    current = url.rstrip("/")
    try:
        with trio.fail_after(2 * _LOOK_S):
            for _ in range(_REDIRECTS + 1):
                target = await check_url(current, allow_private=allow_private)
                path = urlsplit(current).path + "/info/refs?service=git-upload-pack"
                told = credentials if credentials and credentials.are_for(current) else None
                answer = await _get(target, path, told)
                if not answer.is_redirect:
                    return _read_refs(target.url, answer, told)
                current = _redirected(current, answer.headers.get("location", ""))
    except Forbidden as error:
        raise Problem(Code.INVALID_URL, f"Cannot import: {error}", pointer="/url") from None
    except (Unresolvable, httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError) as error:
        text = redact(str(error)) or type(error).__name__
        raise Problem(Code.UPSTREAM_UNAVAILABLE, f"The remote cannot be reached: {text}") from None
    except ImportFailed as error:
        raise Problem(Code.MEMORY_LIMIT, str(error)) from None
    raise Problem(Code.UPSTREAM_UNAVAILABLE, "The remote redirects too often")


def _redirected(current: str, location: str) -> str:
    target = urljoin(current + "/info/refs", location)
    return target.partition("?")[0].removesuffix("/info/refs")


def _read_refs(url: str, answer: httpx.Response, told: Credentials | None) -> Look:
    status = answer.status_code
    if status in (401, 403):
        text = "The remote asks for credentials" if told is None else "The remote refuses them"
        pointer = "/url" if told is None else "/password"
        raise Problem(Code.REMOTE_AUTH_REQUIRED, text, pointer=pointer)
    if status in (404, 410):
        raise Problem(Code.INVALID_URL, "The remote has no such repository", pointer="/url")
    kind = answer.headers.get("content-type", "").partition(";")[0]
    smart = kind == "application/x-git-upload-pack-advertisement"
    dumb = _DUMB.match(answer.content) is not None
    if status != 200 or not (smart or dumb):
        raise Problem(Code.UPSTREAM_UNAVAILABLE, "The remote is not a Git repository")
    body = answer.content
    refs = [ref.decode("utf-8", "replace") for _, ref in _REF.findall(body)]
    symref = _SYMREF.search(body)
    return Look(
        url,
        symref[1].decode("utf-8", "replace") if symref else None,
        frozenset(ref.removeprefix("refs/heads/") for ref in refs if ref != "HEAD"),
    )


def choose_branch(found: Look, wanted: str | None) -> str:
    """The default branch of the import. Raises: Problem if the remote lacks it."""
    if wanted is not None:
        if wanted not in found.branches:
            raise Problem(Code.INVALID_INPUT, "The remote has no such branch", pointer="/branch")
        return wanted
    if found.default_branch is not None:
        return found.default_branch
    for usual in ("main", "master"):
        if usual in found.branches:
            return usual
    return min(found.branches, default="main")


def import_record(repo: Repo, url: str, found: Look, branch: str | None, depth: int | None) -> Repo:
    """`repo` as it is stored before the transfer begins."""
    return replace(
        repo,
        status="importing",
        source=f"git:{url}",
        import_branch=branch,
        job={"url": found.url, "branch": branch, "depth": depth},
    )


class Importing:
    """Carries out imports whose row says ``importing``; safe to run again after a crash."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, repo: Repo, credentials: Credentials | None) -> None:
        """Fetch, and make the repository ready. Raises: ImportFailed."""
        async with self._context.marks.open(repo.id):
            await self._run(repo, credentials)

    async def _run(self, repo: Repo, credentials: Credentials | None) -> None:
        assert repo.job is not None
        context = self._context
        owner = context.standing.owner
        gitdir = context.layout.gitdir(repo.id)
        await trio.to_thread.run_sync(lambda: shutil.rmtree(gitdir, ignore_errors=True))
        await trio.to_thread.run_sync(create_gitdir, gitdir, repo.default_branch)
        await self._fetch(repo, repo.job, credentials)
        size = await trio.to_thread.run_sync(own_bytes, gitdir)
        limits = context.limits
        of_account = await context.catalog.account_bytes(repo.account_id) + size
        if size > limits.repo_bytes or of_account > limits.account_bytes:
            raise ImportFailed("storage limit reached")
        now = now_ms()

        def finish(tx: Transaction) -> None:
            context.standing.check(tx, owner)
            catalog.update_repo(
                tx, repo.id, status="ready", job=None, own_bytes=size, last_push_at=now
            )

        await context.store.write(finish)

    async def _fetch(
        self, repo: Repo, job: Mapping[str, object], credentials: Credentials | None
    ) -> None:
        branch, depth = job["branch"], job["depth"]
        gitdir = self._context.layout.gitdir(repo.id)
        options = [
            *(["--no-tags"] if branch is not None else []),
            *([f"--depth={depth}"] if depth is not None else []),
        ]
        url = str(job["url"])
        if credentials is not None and not credentials.are_for(url):
            credentials = None
        refspecs = refspecs_of(None if branch is None else str(branch))
        fetch = RemoteFetch(self._context, repo, gitdir, credentials)
        await fetch.run(url, refspecs, *options)
