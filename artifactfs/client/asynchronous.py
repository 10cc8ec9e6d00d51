"""`AsyncArtifacts`: the client for programs that run under trio or asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from datetime import date
from types import TracebackType
from typing import Any, TypeVar

import anyio
import httpx

from artifactfs.client import calls
from artifactfs.client.models import (
    ArchiveFormat,
    ArtifactsError,
    Commit,
    Comparison,
    CreatedRepo,
    CreatedToken,
    Direction,
    Jurisdiction,
    MergeMethod,
    MergeResult,
    Namespace,
    Ref,
    RepoInfo,
    RepoPage,
    Scope,
    Sort,
    SyncResult,
    TokenInfo,
    TokenList,
    TreeEntry,
    UsageReport,
    Webhook,
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
        self._top = f"{base_url.rstrip('/')}/client/v4"
        self._account = f"{self._top}/accounts/{account_id}/artifacts"
        self._http = httpx.AsyncClient(
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

    async def get(self, name: str) -> AsyncFoundRepo:
        """A handle of a repository that is there, with what the server knows of it."""
        return AsyncFoundRepo(self, await self._do(calls.get(self.namespace, name)))

    def repo(self, name: str) -> AsyncRepo:
        """A handle, without asking the server."""
        return AsyncRepo(self, name)

    async def list(
        self,
        limit: int = 50,
        cursor: str | None = None,
        *,
        page: int | None = None,
        search: str | None = None,
        sort: Sort | None = None,
        direction: Direction | None = None,
    ) -> RepoPage:
        """One page of repositories, the last created first: the one behind `cursor`, or by number.

        `sort` and `direction` choose another order, `search` those whose name has that in it.
        """
        return await self._do(
            calls.list_repos(self.namespace, limit, cursor, page, search, sort, direction)
        )

    async def repos(
        self,
        *,
        search: str | None = None,
        sort: Sort | None = None,
        direction: Direction | None = None,
        all_namespaces: bool = False,
    ) -> AsyncIterator[RepoInfo]:
        """All repositories, page by page; of every namespace that the token is for."""
        namespace = None if all_namespaces else self.namespace
        cursor: str | None = None
        while True:
            page = await self._do(
                calls.list_repos(namespace, 200, cursor, None, search, sort, direction)
            )
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
        description: str | None = None,
        read_only: bool = False,
        username: str | None = None,
        password: str | None = None,
    ) -> CreatedRepo:
        """Import a repository over https; it may still be under way when this returns.

        `password` (or a token) and `username` are told to the source, this once.
        """
        return await self._do(
            calls.import_repo(
                *(self.namespace, name, url, branch, depth, description, read_only),
                *(username, password),
            )
        )

    async def delete(self, name: str) -> bool:
        """Delete a repository; False if there never was one of that name."""
        return await self._found(calls.delete(self.namespace, name))

    async def namespaces(self) -> AsyncIterator[Namespace]:
        """All namespaces of the account, page by page."""
        cursor: str | None = None
        while True:
            page = await self._do(calls.list_namespaces(200, cursor))
            for namespace in page.namespaces:
                yield namespace
            cursor = page.cursor
            if cursor is None:
                return

    async def create_namespace(
        self, namespace: str, *, jurisdiction: Jurisdiction | None = None
    ) -> Namespace:
        """Make an empty namespace. One also comes into being with its first repository."""
        return await self._do(calls.create_namespace(namespace, jurisdiction))

    async def get_namespace(self, namespace: str) -> Namespace:
        """One namespace of the account."""
        return await self._do(calls.get_namespace(namespace))

    async def delete_namespace(self, namespace: str) -> bool:
        """Delete an empty namespace; False if there is none. CONFLICT if it is not empty."""
        return await self._found(calls.delete_namespace(namespace))

    async def usage(self, since: date | None = None, until: date | None = None) -> UsageReport:
        """Operations and storage from day to day; by default of the last 30 days."""
        return await self._do(calls.usage(since, until))

    async def create_webhook(
        self, url: str, *, namespace: str | None = None, events: Sequence[str] | None = None
    ) -> Webhook:
        """Subscribe `url` to events, by default all, of one namespace or the account.

        The result has the `secret` of the signatures, this once.
        """
        return await self._do(calls.create_webhook(url, namespace, events))

    async def webhooks(self) -> tuple[Webhook, ...]:
        """All subscriptions of the account."""
        return await self._do(calls.list_webhooks())

    async def delete_webhook(self, webhook_id: str) -> bool:
        """Unsubscribe; False if there is no such subscription."""
        return await self._found(calls.delete_webhook(webhook_id))

    async def analytics(
        self, query: str, variables: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """The ``data`` that a GraphQL query of the analytics gets. Its errors are raised."""
        return await self._do(calls.analytics(query, variables))

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
                    (self._top if call.top else self._account) + call.path,
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

    async def list_tokens(self, state: str = "active") -> TokenList:
        """All tokens in a state: active, expired, revoked or all."""
        found = tuple([token async for token in self.tokens(state)])
        return TokenList(found, len(found))

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
        """Revoke a token: what `create_token` or a list returned, its id, or its plaintext.

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

    async def commit(self, hash: str) -> Commit:
        """One commit by its oid in hex."""
        return await self._artifacts._do(calls.commit(self._artifacts.namespace, self.name, hash))

    async def tree(self, hash: str) -> tuple[TreeEntry, ...]:
        """The entries of a tree by its oid in hex, as `Commit.tree` has it."""
        return await self._artifacts._do(calls.tree(self._artifacts.namespace, self.name, hash))

    async def blob(self, hash: str) -> bytes:
        """The content of a blob by its oid in hex."""
        return await self._artifacts._do(calls.blob(self._artifacts.namespace, self.name, hash))

    async def refs(self) -> tuple[Ref, ...]:
        """All refs, by name."""
        return await self._artifacts._do(calls.refs(self._artifacts.namespace, self.name))

    async def diff(self, head: str = "HEAD", base: str | None = None, *paths: str) -> bytes:
        """What changed from `base` (else the first parent) to `head`, as a unified diff."""
        return await self._artifacts._do(
            calls.diff(self._artifacts.namespace, self.name, head, base, paths)
        )

    async def compare(
        self,
        head: str = "HEAD",
        base: str = "HEAD",
        *,
        head_repo: str | None = None,
        limit: int = 50,
    ) -> Comparison:
        """How `head` lies to `base`, and what a merge would do; nothing changes.

        `head_repo`: the fork that `head` is in, ``name`` or ``namespace/name``. At most `limit`
        commits are listed.
        """
        return await self._artifacts._do(
            calls.compare(
                self._artifacts.namespace,
                self.name,
                head=head,
                base=base,
                head_repo=head_repo,
                limit=limit,
            )
        )

    async def compare_diff(
        self, head: str = "HEAD", base: str = "HEAD", *, head_repo: str | None = None
    ) -> bytes:
        """What `head` changed since it left `base`, as a unified diff."""
        return await self._artifacts._do(
            calls.compare_diff(
                self._artifacts.namespace, self.name, head=head, base=base, head_repo=head_repo
            )
        )

    async def merge(
        self,
        head: str,
        *,
        head_repo: str | None = None,
        base: str | None = None,
        method: MergeMethod = "merge",
        message: str | None = None,
        author_name: str | None = None,
        author_email: str | None = None,
        expected: str | None = None,
        expected_head: str | None = None,
    ) -> MergeResult:
        """Merge a branch, or one of the fork `head_repo`, into the branch `base` (the default one).

        MERGE_CONFLICT, with `conflicts` in the error, changes nothing. `expected` and
        `expected_head`: commits that base and head must be at, else CONFLICT.
        """
        return await self._artifacts._do(
            calls.merge(
                self._artifacts.namespace,
                self.name,
                head=head,
                head_repo=head_repo,
                base=base,
                method=method,
                message=message,
                author_name=author_name,
                author_email=author_email,
                expected=expected,
                expected_head=expected_head,
            )
        )

    async def sync(
        self,
        *,
        username: str | None = None,
        password: str | None = None,
        force: bool = False,
        prune: bool = False,
    ) -> SyncResult:
        """Bring an import in step with its source.

        Refs that have other commits here are left alone unless `force`; those that are gone there
        go only with `prune`.
        """
        return await self._artifacts._do(
            calls.sync(
                self._artifacts.namespace,
                self.name,
                username=username,
                password=password,
                force=force,
                prune=prune,
            )
        )

    async def delete_ref(self, ref: str, *, expected: str | None = None) -> bool:
        """Delete a ref such as ``heads/topic``; False if there is none.

        `expected`: what it must be at, else CONFLICT.
        """
        return await self._artifacts._found(
            calls.delete_ref(self._artifacts.namespace, self.name, ref, expected)
        )

    async def archive(
        self, ref: str = "HEAD", *, path: str = "", format: ArchiveFormat = "tar.gz"
    ) -> bytes:
        """A ref, or the folder of it at `path`, as one file."""
        return await self._artifacts._do(
            calls.archive(self._artifacts.namespace, self.name, ref, path, format)
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


class AsyncFoundRepo(RepoInfo, AsyncRepo):
    """A handle that has what the server knew of the repository when it was asked for."""

    def __init__(self, artifacts: AsyncArtifacts, info: RepoInfo) -> None:
        RepoInfo.__init__(self, **{each.name: getattr(info, each.name) for each in fields(info)})
        object.__setattr__(self, "_artifacts", artifacts)  # it is frozen
