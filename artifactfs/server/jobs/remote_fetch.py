"""`git fetch` from another server: from a checked address, bounded in time and size.

Credentials are told to one Git process, by its environment, and to nobody else.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import trio

from artifactfs.redact import redact
from artifactfs.server.context import Context
from artifactfs.server.events.network_guard import Forbidden, Unresolvable, check_url
from artifactfs.server.git.process import git_process
from artifactfs.server.metadata.clock import ticks
from artifactfs.server.metadata.records import Repo
from artifactfs.server.storage.gitdir import git_environment, own_bytes

log = logging.getLogger(__name__)

_WATCH_S = 1.0


class ImportFailed(Exception):
    """The transfer failed; the message can be shown."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password or token, for the origin of `url` and no other.

    They are given with a request, live as long as its work, and are stored and logged nowhere.
    """

    url: str
    username: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of ``Authorization``."""
        text = f"{self.username}:{self.password}".encode()
        return f"Basic {b64encode(text).decode()}"

    def are_for(self, url: str) -> bool:
        """Whether a request to `url` may have them, wherever redirects led."""
        return _origin(url) == _origin(self.url)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    return parts.scheme.lower(), parts.hostname, port


def refspecs_of(branch: str | None) -> list[str]:
    """What an import is of: one branch, or all branches, tags and notes."""
    if branch is not None:
        return [f"+refs/heads/{branch}:refs/heads/{branch}"]
    return [f"+refs/{kind}/*:refs/{kind}/*" for kind in ("heads", "tags", "notes")]


@dataclass(frozen=True, slots=True)
class RemoteFetch:
    """Fetches into `gitdir`, on behalf of `repo`."""

    context: Context
    repo: Repo
    gitdir: Path
    credentials: Credentials | None

    async def run(self, url: str, refspecs: Sequence[str], *options: str) -> None:
        """Fetch. Raises: ImportFailed."""
        context = self.context
        private = context.settings.allow_private_networks
        try:
            target = await check_url(url, allow_private=private)
        except (Forbidden, Unresolvable) as error:
            raise ImportFailed(str(error)) from None
        settings = {
            # The address that was checked is the address that is used.
            "http.curloptResolve": target.curl_resolve,
            "http.followRedirects": "false",
            "http.proxy": "",
            "http.lowSpeedLimit": "1000",
            "http.lowSpeedTime": "60",
            "credential.helper": "",
            "fetch.fsckObjects": "true",
        }
        if self.credentials is not None:
            settings["http.extraHeader"] = f"Authorization: {self.credentials.header}"
        environment = git_environment(context.layout.git_config, settings=settings)
        environment["GIT_ALLOW_PROTOCOL"] = "https:http" if private else "https"
        words = [
            *[context.git, f"--git-dir={self.gitdir}", "fetch", "--quiet"],
            *["--no-auto-maintenance", "--no-write-fetch-head", "--no-recurse-submodules"],
            *[*options, "--", url, *refspecs],
        ]
        status, stderr = await self._run_bounded(words, environment)
        if status != 0:
            text = redact(stderr)
            log.warning("fetching for %s failed: %s", self.repo.full_name, text)
            raise ImportFailed(_told(text))

    async def _run_bounded(self, words: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """Run git fetch, and end it when it takes too long or brings too much."""
        context = self.context
        stored = await context.catalog.account_bytes(self.repo.account_id)
        left = context.limits.account_bytes - stored
        limit = min(context.limits.repo_bytes, left)
        result: tuple[int, str] | None = None
        reason = "the transfer took too long"

        async def watch(scope: trio.CancelScope) -> None:
            nonlocal reason
            async for _ in ticks(_WATCH_S):
                if await trio.to_thread.run_sync(own_bytes, self.gitdir) > limit:
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


def _told(stderr: str) -> str:
    """The line in which git says what is wrong: the first error, others follow from it."""
    lines = stderr.splitlines()
    wrong = [line for line in lines if line.startswith(("fatal: ", "error: "))]
    return next(iter(wrong or lines), "git fetch failed")
