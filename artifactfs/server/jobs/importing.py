"""Imports: a copy of a repository of another Git server, over https.

The remote is looked at before the import is accepted, so that a wrong URL, a private repository
or a missing branch is told at once; the transfer itself is `git fetch` in the background.
"""

from __future__ import annotations

import logging
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
from artifactfs.server.git.process import git_process
from artifactfs.server.metadata import catalog
from artifactfs.server.metadata.clock import now_ms, ticks
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem
from artifactfs.server.storage.gitdir import create_gitdir, git_environment, own_bytes

log = logging.getLogger(__name__)

_REDIRECTS = 5
_WATCH_S = 1.0
_LOOK_S = 30.0
_ADVERTISEMENT_BYTES = 64 * 1024 * 1024
_REF = re.compile(rb"([0-9a-f]{40})[ \t](refs/heads/[^\0\n]+|HEAD)")
_DUMB = re.compile(rb"[0-9a-f]{40}\trefs/")
"""``info/refs`` of a server that only hands out files (gitprotocol-http(5))."""
_SYMREF = re.compile(rb"symref=HEAD:refs/heads/(\S+)")


class ImportFailed(Exception):
    """The transfer failed; the message can be shown."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the remote advertises. `url` is where redirects led."""

    url: str
    default_branch: str | None
    branches: frozenset[str]


async def _get(target: Target, path: str) -> httpx.Response:
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
            headers={"Host": parts.netloc, "User-Agent": "git/2.39 artifacts-server"},
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


async def look(url: str, *, allow_private: bool) -> Look:
    """Ask the remote for its refs.

    Follows redirects, each checked like the first URL. Raises: Problem.
    """
    current = url.rstrip("/")
    try:
        with trio.fail_after(2 * _LOOK_S):
            for _ in range(_REDIRECTS + 1):
                target = await check_url(current, allow_private=allow_private)
                path = urlsplit(current).path + "/info/refs?service=git-upload-pack"
                answer = await _get(target, path)
                if not answer.is_redirect:
                    return _read_refs(target.url, answer)
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


def _read_refs(url: str, answer: httpx.Response) -> Look:
    status = answer.status_code
    if status in (401, 403):
        raise Problem(Code.REMOTE_AUTH_REQUIRED, "The remote asks for credentials", pointer="/url")
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
        job={"url": found.url, "branch": branch, "depth": depth},
    )


def _told(stderr: str) -> str:
    """The line in which git says what is wrong: the first error, others follow from it."""
    lines = stderr.splitlines()
    wrong = [line for line in lines if line.startswith(("fatal: ", "error: "))]
    return next(iter(wrong or lines), "git fetch failed")


class Importing:
    """Carries out imports whose row says ``importing``; safe to run again after a crash."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, repo: Repo) -> None:
        """Fetch, and make the repository ready. Raises: ImportFailed."""
        with self._context.marks.open(repo.id):
            await self._run(repo)

    async def _run(self, repo: Repo) -> None:
        assert repo.job is not None
        context = self._context
        gitdir = context.layout.gitdir(repo.id)
        await trio.to_thread.run_sync(lambda: shutil.rmtree(gitdir, ignore_errors=True))
        await trio.to_thread.run_sync(create_gitdir, gitdir, repo.default_branch)
        await self._fetch(repo, repo.job)
        size = await trio.to_thread.run_sync(own_bytes, gitdir)
        limits = context.limits
        of_account = context.catalog.account_bytes(repo.account_id) + size
        if size > limits.repo_bytes or of_account > limits.account_bytes:
            raise ImportFailed("storage limit reached")
        now = now_ms()
        await context.store.write(
            lambda db: catalog.update_repo(
                db, repo.id, status="ready", job=None, own_bytes=size, last_push_at=now
            )
        )

    async def _fetch(self, repo: Repo, job: Mapping[str, object]) -> None:
        context = self._context
        url, branch, depth = str(job["url"]), job["branch"], job["depth"]
        private = context.settings.allow_private_networks
        try:
            target = await check_url(url, allow_private=private)
        except (Forbidden, Unresolvable) as error:
            raise ImportFailed(str(error)) from None
        environment = git_environment(
            context.layout.git_config,
            settings={
                # The address that was checked is the address that is used.
                "http.curloptResolve": target.curl_resolve,
                "http.followRedirects": "false",
                "http.proxy": "",
                "http.lowSpeedLimit": "1000",
                "http.lowSpeedTime": "60",
                "credential.helper": "",
                "fetch.fsckObjects": "true",
            },
        )
        environment["GIT_ALLOW_PROTOCOL"] = "https:http" if private else "https"
        refspecs = (
            ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", "+refs/notes/*:refs/notes/*"]
            if branch is None
            else [f"+refs/heads/{branch}:refs/heads/{branch}"]
        )
        words = [
            *[context.git, f"--git-dir={context.layout.gitdir(repo.id)}", "fetch"],
            *[
                "--quiet",
                "--no-auto-maintenance",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
            ],
            *(["--no-tags"] if branch is not None else []),
            *([f"--depth={depth}"] if depth is not None else []),
            *["--", url, *refspecs],
        ]
        status, stderr = await self._run_bounded(repo, words, environment)
        if status != 0:
            text = redact(stderr)
            log.warning("import of %s failed: %s", repo.full_name, text)
            raise ImportFailed(_told(text))

    async def _run_bounded(
        self, repo: Repo, words: list[str], environment: dict[str, str]
    ) -> tuple[int, str]:
        """Run git fetch, and end it when it takes too long or brings too much."""
        context = self._context
        gitdir = context.layout.gitdir(repo.id)
        left = context.limits.account_bytes - context.catalog.account_bytes(repo.account_id)
        limit = min(context.limits.repo_bytes, left)
        result: tuple[int, str] | None = None
        reason = "the transfer took too long"

        async def watch(scope: trio.CancelScope) -> None:
            nonlocal reason
            async for _ in ticks(_WATCH_S):
                if await trio.to_thread.run_sync(own_bytes, gitdir) > limit:
                    reason = "storage limit reached"
                    scope.cancel()

        with trio.move_on_after(context.limits.import_time_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                memory = context.limits.git_memory_bytes
                async with git_process(words, environment=environment, memory_bytes=memory) as git:
                    await git.stdin.aclose()
                    while await git.read():
                        pass
                    result = await git.wait(), git.stderr
                nursery.cancel_scope.cancel()
        if result is None:
            raise ImportFailed(reason)
        return result
