"""Forks and imports in the background.

The row is there first, with the name taken and the status ``forking`` or ``importing``; when the
work is done it becomes ``ready``, and if it fails the row and its folder go. A server that starts
takes up every row that is not ready.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from artifactfs.server.cluster.standing import Lost
from artifactfs.server.context import Context
from artifactfs.server.events.events import ActionType, Event, Notice
from artifactfs.server.jobs.forking import ForkFailed, Forking, fork_record
from artifactfs.server.jobs.importing import (
    Importing,
    choose_branch,
    import_record,
    look,
)
from artifactfs.server.jobs.remote_fetch import Credentials, ImportFailed
from artifactfs.server.jobs.repositories import (
    FIRST_TOKEN_TTL_S,
    Repositories,
    check_branch,
    require_ready,
)
from artifactfs.server.jobs.syncing import Synced, SyncOrder, sync
from artifactfs.server.metadata import catalog
from artifactfs.server.metadata.database import DatabaseAway, DatabaseError, Transaction
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem, database_away

log = logging.getLogger(__name__)

_AGAIN_S = 5.0


@dataclass(slots=True)
class Job:
    """Work under way. `done` is set when it ended, well or not."""

    repo: Repo
    credentials: Credentials | None = None
    started: float = field(default_factory=time.perf_counter)
    done: trio.Event = field(default_factory=trio.Event)
    objects: int = 0
    failure: Problem | None = None


class Jobs:
    """Starts, resumes and ends forks and imports, and bounds syncs."""

    def __init__(self, context: Context, repositories: Repositories) -> None:
        self._context = context
        self._repositories = repositories
        self._forking = Forking(context)
        self._importing = Importing(context)
        self._imports_at_once = trio.Semaphore(4)
        self._under_way: set[str] = set()

    async def resume(self) -> None:
        """Take up what an earlier run of the server, or a server that is gone, left undone."""
        context = self._context
        owner = context.standing.owner

        def claim(tx: Transaction) -> None:
            context.standing.check(tx, owner)
            tx.run(
                "UPDATE repos SET owner = :owner WHERE status <> 'ready' AND owner IS NULL",
                {"owner": owner},
            )

        if context.standing.shared:
            await context.store.write(claim)
        for repo in await context.catalog.unfinished(owner):
            if repo.id not in self._under_way:
                log.info("resuming: %s is %s", repo.full_name, repo.status)
                self._start(Job(repo))

    async def fork(
        self,
        parent: Repo,
        name: str,
        *,
        namespace: str | None = None,
        description: str | None,
        read_only: bool,
        anonymous_read: bool,
        default_branch_only: bool,
    ) -> tuple[Repo, str, int]:
        """Fork a repository: the fork, a write token, how many objects it shares.

        Waits for the end of the work for a while; the fork may still be under way then.
        Raises: Problem.
        """
        require_ready(parent)
        fresh = self._repositories.new_record(
            parent.account_id,
            parent.namespace if namespace is None else namespace,
            name,
            description=parent.description if description is None else description,
            default_branch=parent.default_branch,
            read_only=read_only,
            anonymous_read=anonymous_read,
        )
        repo = fork_record(fresh, parent, default_branch_only=default_branch_only)
        token = await self._insert(repo)
        job = await self._run(Job(repo))
        return repo, token, job.objects

    async def import_repo(
        self,
        account_id: str,
        namespace: str,
        name: str,
        url: str,
        *,
        branch: str | None,
        depth: int | None,
        description: str | None,
        read_only: bool,
        anonymous_read: bool,
        credentials: Credentials | None = None,
    ) -> tuple[Repo, str]:
        """Import a repository: it, and a write token. Waits for a while. Raises: Problem.

        An import with `credentials` that a restart of the server interrupts is given up: nobody
        has them any more.
        """
        if branch is not None:
            check_branch(branch, "/branch")
        self._repositories.check_namespace(namespace)
        self._repositories.check_name(name)
        if await self._context.catalog.repo(namespace, name) is not None:
            raise Problem(Code.ALREADY_EXISTS, f"Repository {name!r} already exists")
        private = self._context.settings.allow_private_networks
        found = await look(url, allow_private=private, credentials=credentials)
        fresh = self._repositories.new_record(
            account_id,
            namespace,
            name,
            description=description,
            default_branch=choose_branch(found, branch),
            read_only=read_only,
            anonymous_read=anonymous_read,
        )
        repo = import_record(fresh, url, found, branch, depth)
        token = await self._insert(repo)
        await self._run(Job(repo, credentials))
        return repo, token

    async def sync(self, repo: Repo, order: SyncOrder, *, actor: str | None) -> Synced:
        """Bring an import in step with its source, in turn with imports. Raises: Problem."""
        with trio.move_on_after(self._context.limits.git_queue_s) as waiting:
            await self._imports_at_once.acquire()
        if waiting.cancelled_caught:
            raise Problem(Code.BUSY, "Too much to do", retry_after=5)
        try:
            return await sync(self._context, repo, order, actor=actor)
        finally:
            self._imports_at_once.release()

    async def _insert(self, repo: Repo) -> str:
        owner = self._context.standing.owner

        def insert(tx: Transaction) -> str:
            catalog.ensure_namespace(tx, repo.namespace, repo.account_id)
            self._context.standing.check(tx, owner)
            catalog.add_repo(tx, repo, owner=owner)
            return catalog.add_repo_token(tx, repo.id, repo.namespace, "write", FIRST_TOKEN_TTL_S)[
                1
            ]

        return await self._context.store.write(insert)

    async def _run(self, job: Job) -> Job:
        self._start(job)
        with trio.move_on_after(self._context.limits.import_wait_s):
            await job.done.wait()
        if job.failure is not None:
            raise job.failure
        return job

    def _start(self, job: Job) -> None:
        work = self._fork if job.repo.status == "forking" else self._import
        self._context.background.start_soon(self._supervise, job, work)

    async def _supervise(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        standing, owner = self._context.standing, self._context.standing.owner
        self._under_way.add(job.repo.id)
        try:
            while not await self._is_over(job, work):
                await trio.sleep(_AGAIN_S)
                if standing.owner != owner:
                    self._leave(job, "this server has lost its database")
                    break
        finally:
            self._under_way.discard(job.repo.id)
            with trio.CancelScope(shield=True):
                await self._discard_deleted(job.repo)
            job.done.set()

    async def _is_over(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> bool:
        """Do the work, or give it up. False: the database is away, so it is to be done again."""
        try:
            await self._try(job, work)
        except Lost as error:
            self._leave(job, str(error))
        except DatabaseAway as error:
            log.warning("the work on %s goes on later: %s", job.repo.full_name, error)
            return False
        except DatabaseError:
            log.exception("the work on %s failed; it goes on at the next start", job.repo.full_name)
            job.failure = Problem(Code.INTERNAL_ERROR, "The result cannot be stored")
            if self._context.standing.shared:
                self._context.background.start_soon(self._again)
        return True

    async def _try(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        """Raises: Lost, DatabaseError."""
        try:
            with self._context.standing.working():
                await work(job)
        except (Lost, DatabaseError):
            raise
        except (ForkFailed, ImportFailed) as error:
            await self._give_up(job, str(error))
        except OSError as error:
            log.exception("the work on %s failed", job.repo.full_name)
            await self._give_up(job, error.strerror or "input/output error")
        except Exception:
            log.exception("the work on %s failed", job.repo.full_name)
            await self._give_up(job, "internal error")

    def _leave(self, job: Job, reason: str) -> None:
        log.warning("the work on %s is left to others: %s", job.repo.full_name, reason)
        job.failure = database_away()

    async def _discard_deleted(self, repo: Repo) -> None:
        """Where it was deleted while the work went on."""
        try:
            if await self._context.catalog.repo_by_id(repo.id) is None:
                await self._repositories.discard(self._context.layout.gitdir(repo.id))
        except DatabaseError as error:
            log.error("%s cannot be looked up: %s", repo.full_name, error)

    async def _again(self) -> None:
        """As long as we are still those whose work it is."""
        with suppress(Lost):
            while True:
                await trio.sleep(_AGAIN_S)
                with suppress(DatabaseError):
                    await self.resume()
                    return

    async def _fork(self, job: Job) -> None:
        job.objects = await self._forking.run(job.repo)
        self._finished(job, "fork", "forked")

    async def _import(self, job: Job) -> None:
        async with self._imports_at_once:
            await self._importing.run(job.repo, job.credentials)
        self._finished(job, "create", "imported")

    def _finished(self, job: Job, event: ActionType, notice: str) -> None:
        repo, events = job.repo, self._context.events
        duration = (time.perf_counter() - job.started) * 1000
        events.record(Event(repo.account_id, repo.namespace, repo.name, event, duration))
        payload = {"source": repo.source}
        events.notify(Notice(repo.account_id, repo.namespace, repo.name, notice, payload))

    async def _give_up(self, job: Job, reason: str) -> None:
        """Undo: the name is free again, and nothing is left on disk."""
        repo = job.repo
        storage = "storage limit" in reason
        log.warning("%s of %s failed: %s", repo.status, repo.full_name, reason)
        with trio.CancelScope(shield=True):
            await self._context.store.write(
                lambda tx: catalog.remove_repo(tx, repo, tombstone=False)
            )
            code = Code.STORAGE_LIMIT if storage else Code.UPSTREAM_UNAVAILABLE
            job.failure = Problem(code, f"The {repo.status.removesuffix('ing')} failed: {reason}")
            await self._repositories.discard(self._context.layout.gitdir(repo.id))
        self._context.events.record(
            Event(
                repo.account_id,
                repo.namespace,
                repo.name,
                "storageLimitReached" if storage else "clientError",
                (time.perf_counter() - job.started) * 1000,
                error_message=reason,
            )
        )
