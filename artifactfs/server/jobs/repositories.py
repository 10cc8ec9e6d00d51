"""Creating, deleting and describing repositories: database and disk together.

What a crash may leave: a folder without a row (swept at the next start), or a row that says
``forking`` or ``importing`` (taken up again at the next start). A row is the truth.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import trio

from artifactfs.server.context import Context
from artifactfs.server.events.events import ActionType, Event, Notice
from artifactfs.server.metadata import catalog, tokens
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import Transaction
from artifactfs.server.metadata.records import Repo, RepoToken, Scope
from artifactfs.server.problems import Code, Problem, not_found
from artifactfs.server.storage.gitdir import create_gitdir, point_head, remove_later
from artifactfs.server.storage.settings import NAME_HINTS, name_is_valid

FIRST_TOKEN_TTL_S = 86_400
MIN_TTL_S, MAX_TTL_S = 60, 31_536_000
_BAD_BRANCH = re.compile(r"\.\.|//|@\{|/\.|\.lock(/|$)|[\x00-\x20\x7f~^:?*\[\\]|^[/.-]|[/.]$|^@$")


def check_branch(name: str, pointer: str) -> str:
    """Return a branch name that git-check-ref-format(1) allows; ``refs/heads/x`` means x.

    Raises: Problem.
    """
    name = name.removeprefix("refs/heads/")
    if name.startswith("refs/"):
        raise Problem(Code.INVALID_INPUT, "The name is not that of a branch", pointer=pointer)
    if not name or len(name.encode()) > 200 or _BAD_BRANCH.search(name):
        raise Problem(Code.INVALID_INPUT, "The branch name is not valid", pointer=pointer)
    return name


class Repositories:
    """The life of repositories."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def check_name(self, name: str, pointer: str = "/name") -> str:
        """Raises: Problem (INVALID_REPO_NAME)."""
        if not name_is_valid(name, self._context.settings.names):
            raise Problem(
                Code.INVALID_REPO_NAME,
                NAME_HINTS[self._context.settings.names],
                pointer=pointer,
            )
        return name

    def check_namespace(self, name: str, pointer: str | None = None) -> str:
        """Raises: Problem (INVALID_INPUT)."""
        if not name_is_valid(name, self._context.settings.names):
            raise Problem(Code.INVALID_INPUT, "The namespace name is not valid", pointer=pointer)
        return name

    async def get(self, account_id: str, namespace: str, name: str) -> Repo:
        """The repository, in whatever status. Raises: Problem (NOT_FOUND)."""
        repo = await self._context.catalog.repo(namespace, name)
        if repo is None or repo.account_id != account_id:
            raise not_found("Repository")
        return repo

    async def get_ready(self, account_id: str, namespace: str, name: str) -> Repo:
        """The repository. Raises: Problem (NOT_FOUND, or 409 while it is not ready)."""
        repo = await self.get(account_id, namespace, name)
        require_ready(repo)
        return repo

    async def create(
        self,
        account_id: str,
        namespace: str,
        name: str,
        *,
        description: str | None,
        default_branch: str,
        read_only: bool,
        anonymous_read: bool = False,
    ) -> tuple[Repo, str]:
        """Make an empty repository; returns it and a write token. Raises: Problem."""
        started = time.perf_counter()
        default_branch = check_branch(default_branch, "/default_branch")
        repo = self.new_record(
            account_id,
            namespace,
            name,
            description=description,
            default_branch=default_branch,
            read_only=read_only,
            anonymous_read=anonymous_read,
        )
        gitdir = self._context.layout.gitdir(repo.id)

        def insert(tx: Transaction) -> str:
            self._context.standing.check(tx, owner)
            catalog.ensure_namespace(tx, namespace, account_id)
            catalog.add_repo(tx, repo)
            return catalog.add_repo_token(tx, repo.id, namespace, "write", FIRST_TOKEN_TTL_S)[1]

        owner = self._context.standing.owner
        with trio.CancelScope(shield=True):
            async with self._context.marks.open(repo.id):
                await trio.to_thread.run_sync(create_gitdir, gitdir, default_branch)
                try:
                    plaintext = await self._context.store.write(insert)
                except BaseException:
                    await self.discard(gitdir)
                    raise
        self._report(repo, "create", started)
        self._notify(repo, "created", {"defaultBranch": default_branch})
        return repo, plaintext

    def new_record(
        self,
        account_id: str,
        namespace: str,
        name: str,
        *,
        description: str | None,
        default_branch: str,
        read_only: bool,
        anonymous_read: bool = False,
    ) -> Repo:
        """A record with a new id, not stored yet. Raises: Problem for bad names."""
        now = now_ms()
        return Repo(
            id=tokens.new_id(),
            namespace=self.check_namespace(namespace),
            account_id=account_id,
            name=self.check_name(name),
            description=description,
            default_branch=default_branch,
            read_only=read_only,
            anonymous_read=anonymous_read,
            status="ready",
            source=None,
            job=None,
            created_at=now,
            updated_at=now,
            last_push_at=None,
            own_bytes=0,
        )

    async def update(
        self,
        repo: Repo,
        *,
        description: str | None = None,
        default_branch: str | None = None,
        read_only: bool | None = None,
        anonymous_read: bool | None = None,
    ) -> Repo:
        """Change what is given; an empty description takes it away. Raises: Problem."""
        changes: dict[str, object] = {
            "description": description or None if description is not None else repo.description,
            "read_only": repo.read_only if read_only is None else read_only,
            "anonymous_read": repo.anonymous_read if anonymous_read is None else anonymous_read,
        }
        with trio.CancelScope(shield=True):
            async with self._context.marks.open(repo.id):
                if default_branch is not None:
                    default_branch = check_branch(default_branch, "/default_branch")
                    changes["default_branch"] = default_branch
                    gitdir = self._context.layout.gitdir(repo.id)
                    await trio.to_thread.run_sync(point_head, gitdir, default_branch)
                await self._context.store.write(
                    lambda tx: catalog.update_repo(tx, repo.id, **changes)
                )
        return await self.get(repo.account_id, repo.namespace, repo.name)

    async def delete(self, account_id: str, namespace: str, name: str) -> str:
        """Delete a repository, or say again that it is; returns its id. Raises: Problem."""
        started = time.perf_counter()
        known = self._context.catalog
        repo = await known.repo(namespace, name)
        if repo is None or repo.account_id != account_id:
            owned = await known.namespace(namespace, account_id) is not None
            gone = await known.deleted_repo_id(namespace, name) if owned else None
            if gone is None:
                raise not_found("Repository")
            return gone
        found = repo

        def remove(tx: Transaction) -> bool:
            return catalog.remove_repo(tx, found, tombstone=True)

        with trio.CancelScope(shield=True):
            async with self._context.marks.open(repo.id):
                if not await self._context.store.write(remove):
                    return repo.id  # another request, perhaps at another server, was faster
                await self.discard(self._context.layout.gitdir(repo.id))
        self._report(repo, "delete", started)
        self._notify(repo, "deleted", {})
        return repo.id

    async def create_token(
        self, account_id: str, namespace: str, name: str, scope: Scope, ttl_s: int
    ) -> tuple[RepoToken, str]:
        """Make a token; returns it and its plaintext. Raises: Problem."""
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise Problem(
                Code.INVALID_TTL,
                f"ttl must be between {MIN_TTL_S} and {MAX_TTL_S} seconds",
                pointer="/ttl",
            )
        repo = await self.get_ready(account_id, namespace, name)
        token, plaintext = await self._context.store.write(
            lambda tx: catalog.add_repo_token(tx, repo.id, namespace, scope, ttl_s)
        )
        self._notify(repo, "token.created", {"tokenId": token.id, "scope": scope})
        return token, plaintext

    async def revoke_token(self, account_id: str, namespace: str, token_or_id: str) -> str:
        """Revoke a token at once, named by its id or by itself; again is fine. Returns the id.

        Raises: Problem (NOT_FOUND).
        """
        known = self._context.catalog
        token = await known.token_by_id(token_or_id, namespace)
        if token is None:
            presented = await known.repo_token(token_or_id)
            token = None if presented is None else await known.token_by_id(presented.id, namespace)
        if token is None or await known.namespace(namespace, account_id) is None:
            raise not_found("Token")
        token_id = token.id
        if token.revoked_at is None:
            await self._context.store.write(
                lambda tx: tx.run(
                    "UPDATE tokens SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL",
                    {"now": now_ms(), "id": token_id},
                )
            )
            repo = await known.repo_by_id(token.repo_id)
            if repo is not None:
                self._notify(repo, "token.revoked", {"tokenId": token_id})
        return token_id

    async def discard(self, directory: Path) -> None:
        """Take a folder away at once; its files are deleted in the background."""
        trash = self._context.layout.trash
        moved = await trio.to_thread.run_sync(remove_later, directory, trash)
        if moved is not None:
            self._context.background.start_soon(remove_tree, moved)

    def _report(self, repo: Repo, kind: ActionType, started: float) -> None:
        duration = (time.perf_counter() - started) * 1000
        self._context.events.record(
            Event(repo.account_id, repo.namespace, repo.name, kind, duration)
        )

    def _notify(self, repo: Repo, kind: str, payload: dict[str, object]) -> None:
        self._context.events.notify(
            Notice(repo.account_id, repo.namespace, repo.name, kind, payload)
        )


def require_ready(repo: Repo) -> None:
    """Raises: Problem (409, retriable) while a fork or import goes on."""
    if repo.status == "importing":
        raise Problem(Code.IMPORT_IN_PROGRESS, "The import is still in progress", retry_after=1)
    if repo.status == "forking":
        raise Problem(Code.FORK_IN_PROGRESS, "The fork is still in progress", retry_after=1)


async def remove_tree(directory: Path) -> None:
    """Delete a folder in a thread; what is gone already does not matter."""
    await trio.to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))
