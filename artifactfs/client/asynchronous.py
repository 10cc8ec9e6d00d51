"""`AsyncArtifacts`: the client for programs that run under trio or asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TypeVar

import anyio
import httpx

from artifactfs.client import calls
from artifactfs.client.models import (
    ArtifactsError,
    Commit,
    CreatedRepo,
    CreatedToken,
    Namespace,
    Ref,
    RepoInfo,
    RepoPage,
    Scope,
    TokenInfo,
)

T = TypeVar("T")


class AsyncArtifacts:
    """The repositories of one namespace.

    Every method waits on the network, at most `timeout_s` for each answer; it repeats the request
    on 429, 503 and, where that is safe, other 5xx answers, and raises `ArtifactsError`. A method
    that is cut short may or may not have had its effect on the server.
    """

    def __init__(
        self,
        base_url: str,
        account_id: str,
        api_token: str,
        namespace: str,
        *,
        timeout_s: float = calls.DEFAULT_TIMEOUT_S,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.namespace = namespace
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=f"{base_url.rstrip('/')}/client/v4/accounts/{account_id}/artifacts",
            headers={"Authorization": f"Bearer {api_token}"},
            timeout=timeout_s,
            transport=transport,
        )

    async def __aenter__(self) -> AsyncArtifacts:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def create(
        self,
        name: str,
        *,
        description: str | None = None,
        read_only: bool = False,
        default_branch: str = "main",
        anonymous_read: bool | None = None,
    ) -> CreatedRepo:
        """Make an empty repository; its write token is in the result.

        `anonymous_read`: let git fetch from it without a token.
        """
        return await self._do(
            calls.create(
                self.namespace, name, description, read_only, default_branch, anonymous_read
            )
        )

    async def get(self, name: str) -> AsyncRepo:
        """A handle of a repository that is there and ready."""
        await self._do(calls.get(self.namespace, name))
        return AsyncRepo(self, name)

    def repo(self, name: str) -> AsyncRepo:
        """A handle, without asking the server."""
        return AsyncRepo(self, name)

    async def list(
        self, limit: int = 50, cursor: str | None = None, *, search: str | None = None
    ) -> RepoPage:
        """One page of repositories, newest first."""
        return await self._do(calls.list_repos(self.namespace, limit, cursor, search))

    async def repos(self, *, search: str | None = None) -> AsyncIterator[RepoInfo]:
        """All repositories, page by page."""
        cursor: str | None = None
        while True:
            page = await self._do(calls.list_repos(self.namespace, 200, cursor, search))
            for repo in page.repos:
                yield repo
            cursor = page.cursor
            if cursor is None:
                return

    async def import_(
        self,
        name: str,
        url: str,
        *,
        branch: str | None = None,
        depth: int | None = None,
        read_only: bool = False,
    ) -> CreatedRepo:
        """Import a repository over https; it may still be under way when this returns."""
        return await self._do(
            calls.import_repo(self.namespace, name, url, branch, depth, read_only)
        )

    async def delete(self, name: str) -> bool:
        """Delete a repository; False if there never was one of that name."""
        return await self._found(calls.delete(self.namespace, name))

    async def namespaces(self) -> tuple[Namespace, ...]:
        """The namespaces of the account, at most 200."""
        return await self._do(calls.list_namespaces())

    async def _found(self, call: calls.Call[None]) -> bool:
        try:
            await self._do(call)
        except ArtifactsError as error:
            if error.code == "NOT_FOUND":
                return False
            raise
        return True

    async def _do(self, call: calls.Call[T]) -> T:
        attempt = 0
        while True:
            response: httpx.Response | None = None
            failure: httpx.HTTPError | None = None
            try:
                response = await self._http.request(
                    call.method,
                    call.path,
                    json=call.json,
                    content=call.content,
                    params=call.params,
                )
            except httpx.ConnectError as error:
                failure = error
            except httpx.HTTPError as error:
                raise calls.unavailable(error) from None
            wait = calls.wait_before_retry(call.method, response, attempt, self._retries)
            if wait is None:
                if response is None:
                    assert failure is not None
                    raise calls.unavailable(failure) from None
                return call.answer(response)
            attempt += 1
            await anyio.sleep(wait)


class AsyncRepo:
    """A handle of one repository."""

    def __init__(self, artifacts: AsyncArtifacts, name: str) -> None:
        self._artifacts = artifacts
        self.name = name

    async def info(self) -> RepoInfo:
        """What the server knows of it."""
        return await self._artifacts._do(calls.get(self._artifacts.namespace, self.name))

    async def update(
        self,
        *,
        description: str | None = None,
        default_branch: str | None = None,
        read_only: bool | None = None,
        anonymous_read: bool | None = None,
    ) -> RepoInfo:
        """Change what is given; an empty description takes it away."""
        return await self._artifacts._do(
            calls.update(
                self._artifacts.namespace,
                self.name,
                description=description,
                default_branch=default_branch,
                read_only=read_only,
                anonymous_read=anonymous_read,
            )
        )

    async def create_token(self, scope: Scope = "write", ttl: int = 86_400) -> CreatedToken:
        """Make a token that lasts `ttl` seconds (60 to 31,536,000)."""
        return await self._artifacts._do(
            calls.create_token(self._artifacts.namespace, self.name, scope, ttl)
        )

    async def list_tokens(self, state: str = "active") -> tuple[TokenInfo, ...]:
        """All tokens in a state: active, expired, revoked or all."""
        return tuple([token async for token in self.tokens(state)])

    async def tokens(self, state: str = "active") -> AsyncIterator[TokenInfo]:
        """Tokens, page by page."""
        page = 1
        while True:
            found = await self._artifacts._do(
                calls.list_tokens(self._artifacts.namespace, self.name, state, page)
            )
            for token in found:
                yield token
            if len(found) < 100:
                return
            page += 1

    async def revoke_token(self, token: CreatedToken | TokenInfo | str) -> bool:
        """Revoke a token, given as what `create_token` or a list returned, or by its id.

        False if the server knows no such token.
        """
        token_id = token if isinstance(token, str) else token.id
        return await self._artifacts._found(calls.revoke_token(self._artifacts.namespace, token_id))

    async def fork(
        self,
        name: str,
        *,
        description: str | None = None,
        read_only: bool = False,
        default_branch_only: bool = False,
        namespace: str | None = None,
        anonymous_read: bool | None = None,
    ) -> CreatedRepo:
        """Fork it, into another `namespace` if that is given; the fork's write token is in the
        result.
        """
        return await self._artifacts._do(
            calls.fork(
                self._artifacts.namespace,
                self.name,
                name,
                description,
                read_only,
                default_branch_only,
                namespace,
                anonymous_read,
            )
        )

    async def log(self, ref: str = "HEAD", limit: int = 50, offset: int = 0) -> tuple[Commit, ...]:
        """Commits of a ref, first parents, newest first; none for an unknown ref."""
        return await self._artifacts._do(
            calls.log(self._artifacts.namespace, self.name, ref, limit, offset)
        )

    async def refs(self) -> tuple[Ref, ...]:
        """All refs, by name."""
        return await self._artifacts._do(calls.refs(self._artifacts.namespace, self.name))

    async def diff(self, head: str = "HEAD", base: str | None = None, *paths: str) -> bytes:
        """What changed from `base` (else the first parent) to `head`, as a unified diff."""
        return await self._artifacts._do(
            calls.diff(self._artifacts.namespace, self.name, head, base, paths)
        )

    async def read_file(self, path: str, ref: str = "HEAD") -> bytes:
        """The content of a file."""
        return await self._artifacts._do(
            calls.read_file(self._artifacts.namespace, self.name, path, ref)
        )

    async def write_file(
        self,
        path: str,
        data: bytes,
        *,
        branch: str | None = None,
        message: str | None = None,
        expected: str | None = None,
    ) -> Commit:
        """Commit a file to a branch; `expected` is the commit that the branch must be at.

        At most 1 MiB. CONFLICT if the branch is elsewhere, or moved meanwhile.
        """
        return await self._artifacts._do(
            calls.write_file(
                self._artifacts.namespace,
                self.name,
                path,
                data,
                branch=branch,
                message=message,
                expected=expected,
            )
        )

    async def delete_file(
        self,
        path: str,
        *,
        branch: str | None = None,
        message: str | None = None,
        expected: str | None = None,
    ) -> Commit:
        """Commit the removal of a file; otherwise like `write_file`."""
        return await self._artifacts._do(
            calls.delete_file(
                self._artifacts.namespace,
                self.name,
                path,
                branch=branch,
                message=message,
                expected=expected,
            )
        )
