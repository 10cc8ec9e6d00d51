"""Forks: a new repository that shares its ancestor's objects."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from artifactfs.server.context import Context
from artifactfs.server.git.process import run_bounded
from artifactfs.server.metadata import catalog, tokens
from artifactfs.server.metadata.database import Transaction
from artifactfs.server.metadata.records import Repo
from artifactfs.server.storage.gitdir import (
    create_gitdir,
    git_environment,
    own_bytes,
    sync_tree,
    write_alternates,
)
from artifactfs.server.storage.open_marks import pool_mark
from artifactfs.server.storage.pools import PoolContents, fill_pool, has_all, own_object_files

_REFS_S = 120.0


class ForkFailed(Exception):
    """The ancestor cannot be read, or is gone."""


@dataclass(frozen=True, slots=True)
class _NewPool:
    id: str
    contents: PoolContents


class Forking:
    """Carries out forks whose row says ``forking``; safe to run again after a crash."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, fork: Repo) -> int:
        """Make the fork ready; how many objects it shares. Raises: ForkFailed."""
        assert fork.job is not None
        parent = await self._context.catalog.repo_by_id(fork.job["parent"])
        if parent is None:
            raise ForkFailed("the ancestor was deleted")
        async with self._context.standing.only_one(f"fork {parent.id}"):
            try:
                async with self._context.marks.open(parent.id, fork.id):
                    return await self._fork(parent, fork, bool(fork.job["default_branch_only"]))
            except OSError as error:
                raise ForkFailed(f"the ancestor cannot be read: {error.strerror}") from error

    async def _fork(self, parent: Repo, fork: Repo, default_branch_only: bool) -> int:
        source = self._context.layout.gitdir(parent.id)
        # Refs first: all objects they need are there when the objects are linked afterwards.
        refs = await self._refs(source, parent.default_branch if default_branch_only else None)
        pools = await self._context.catalog.pool_ids(parent.id)
        pool_id = tokens.new_id()
        async with self._context.marks.open(pool_mark(pool_id)):
            new = await trio.to_thread.run_sync(self._pool_for, source, pools, pool_id)
            return await self._fork_with(parent, fork, refs, pools, new)

    async def _fork_with(
        self, parent: Repo, fork: Repo, refs: str, pools: list[str], new: _NewPool | None
    ) -> int:
        layout, standing = self._context.layout, self._context.standing
        owner = standing.owner
        source, target = layout.gitdir(parent.id), layout.gitdir(fork.id)
        if new is not None:
            pools = [*pools, new.id]

        def claim(tx: Transaction) -> int:
            standing.check(tx, owner)
            if new is not None:
                made = new.contents
                catalog.add_pool(tx, new.id, parent.account_id, made.bytes, made.objects)
                catalog.claim_pool(tx, parent.id, new.id)
            for pool_id in pools:
                catalog.claim_pool(tx, fork.id, pool_id)
            row = tx.row(
                "SELECT coalesce(sum(objects), 0) AS n FROM pools WHERE id IN"
                " (SELECT pool_id FROM repo_pools WHERE repo_id = :fork)",
                {"fork": fork.id},
            )
            return 0 if row is None else int(row["n"])

        with trio.CancelScope(shield=True):
            objects = await self._context.store.write(claim)
            paths = tuple(layout.pool(pool_id) for pool_id in pools)
            await trio.to_thread.run_sync(_build, source, target, parent, paths, refs)
            await trio.to_thread.run_sync(write_alternates, source, paths)
            left = await trio.to_thread.run_sync(own_bytes, source)

            def finish(tx: Transaction) -> None:
                standing.check(tx, owner)
                catalog.update_repo(
                    tx, fork.id, status="ready", job=None, updated_at=fork.updated_at
                )
                catalog.update_repo(tx, parent.id, own_bytes=left, updated_at=parent.updated_at)

            await self._context.store.write(finish)
        return objects

    def _pool_for(self, source: Path, pools: list[str], new_id: str) -> _NewPool | None:
        """A new pool with the ancestor's own objects, unless a pool has them all."""
        objects = source / "objects"
        names = own_object_files(objects)
        if not names:
            return None
        for pool_id in reversed(pools):
            if has_all(self._context.layout.pool(pool_id), names):
                return None
        return _NewPool(new_id, fill_pool(objects, self._context.layout.pool(new_id)))

    async def _refs(self, source: Path, only_branch: str | None) -> str:
        """All refs of the ancestor, or one branch, as the text of a ``packed-refs`` file."""
        patterns = [] if only_branch is None else [f"refs/heads/{only_branch}"]
        status, output, stderr = await run_bounded(
            [
                self._context.git,
                f"--git-dir={source}",
                "for-each-ref",
                "--format=%(objectname) %(refname)",
                *patterns,
            ],
            environment=git_environment(self._context.layout.git_config),
            deadline_s=_REFS_S,
        )
        if status != 0:
            raise ForkFailed(f"the refs of the ancestor cannot be read: {stderr}")
        return "# pack-refs with: sorted \n" + output.decode("utf-8", "surrogateescape")


def _build(source: Path, target: Path, parent: Repo, pools: tuple[Path, ...], refs: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    create_gitdir(target, parent.default_branch, pools=pools)
    with suppress(FileNotFoundError):
        # Where the history of an import with a depth ends, and so that of its forks.
        shutil.copyfile(source / "shallow", target / "shallow")
    (target / "packed-refs").write_text(refs, encoding="utf-8", errors="surrogateescape")
    sync_tree(target)


def fork_record(fork: Repo, parent: Repo, *, default_branch_only: bool) -> Repo:
    """`fork` as it is stored before the work begins."""
    return replace(
        fork,
        status="forking",
        source=f"artifacts:{parent.namespace}/{parent.name}",
        job={"parent": parent.id, "default_branch_only": default_branch_only},
    )
