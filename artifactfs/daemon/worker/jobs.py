"""What a worker does behind a mount that can be read already.

Each job is a task of its own and may fail without touching the mount (`keep_trying`). What waits
for what: the primed index needs sizes; git in the mount waits for the index; the sweep yields to
readers by itself; history comes over a connection of its own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from artifactfs.daemon.repositories.fetching import Record, fetch_recorded, last_fetch
from artifactfs.daemon.repositories.heads import Head, ahead_behind, head_of
from artifactfs.daemon.worker.background import Refresh, keep_trying, run_quietly
from artifactfs.daemon.worker.following import follow
from artifactfs.daemon.worker.other_tips import learn_sizes
from artifactfs.errors import ArtifactFSError
from artifactfs.git.command import run_git
from artifactfs.git.objects.database import MissingObject
from artifactfs.git.remote.fetch import fetch_history
from artifactfs.git.repository.gitdir import history_complete, read_head

if TYPE_CHECKING:
    from artifactfs.daemon.worker.worker import Worker

log = logging.getLogger(__name__)

INDEX_DEADLINE_S = 300.0
CONFIG_DEADLINE_S = 5.0  # less than the supervisor waits for the end
SIZES_WAIT_S = 10.0
SIZES_POLL_S = 0.02
GIT_FILES_WAIT_S = 5.0
SOUND_GIT = [2, 43]
WATCH_S = 2.0
"""How often HEAD and the index are looked at: two `stat`, 4 µs."""


COUNT_WAIT_S = 1.0

Pair = tuple[str, str]
"""A branch's commit and its upstream's, in hex."""


class Jobs:
    """The background of one mount."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._fetching = trio.Lock()
        self._nursery: trio.Nursery
        self._counts: tuple[Pair, tuple[int, int] | None] | None = None
        self._counting: dict[Pair, trio.Event] = {}
        self.history_done = trio.Event()
        self.index_primed = False
        self.refresh = Refresh(worker.settings.refresh_s, self._refresh, repo=worker.name)

    async def run(self) -> None:
        """Start everything; runs as long as the mount."""
        worker = self._worker
        worker.hydrator.start_sweep(worker.filesystem.base.tree)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep, "index", self._prime_index)
            nursery.start_soon(self._keep, "history", self._fetch_history)
            nursery.start_soon(self.refresh.run)
            nursery.start_soon(self._watch_gitdir)

    def start(self, job: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run `job` beside the others. Its failure is logged, and touches nothing else."""
        self._nursery.start_soon(self._alone, job, arguments)

    async def _alone(
        self, job: Callable[..., Awaitable[None]], arguments: tuple[object, ...]
    ) -> None:
        try:
            await job(*arguments)
        except Exception as error:
            log.error("%s failed", job.__name__.strip("_"), exc_info=error)

    async def _keep(self, name: str, job: object) -> None:
        assert callable(job)
        await keep_trying(name, job, repo=self._worker.name)

    # -- history and refs --------------------------------------------------------------------

    async def _fetch_history(self) -> None:
        worker = self._worker
        if not history_complete(worker.layout.gitdir):
            remote = await worker.remotes.shared()
            async with self._fetching:
                give_way = worker.hydrator.give_way
                await fetch_history(worker.layout, worker.settings, remote, give_way=give_way)
            worker.odb.refresh()
            log.info("history is complete")
        self.history_done.set()
        head = read_head(worker.layout.gitdir).commit
        if head is not None:
            worker.hydrator.start_recent(head)
        self.start(learn_sizes, worker)

    async def fetch(self) -> Record:
        """Fetch the remote's refs now. Raises: RemoteError."""
        worker = self._worker
        async with self._fetching:
            remote = await worker.remotes.shared()
            record = await fetch_recorded(worker.layout, worker.settings, remote)
        worker.odb.refresh()
        if await follow(worker):
            record["followed"] = worker.filesystem.base.commit.hex()
        return record

    async def _refresh(self) -> None:
        await self.fetch()

    def last_fetch(self) -> Record | None:
        return last_fetch(self._worker.layout)

    async def head(self) -> tuple[Head, tuple[int, int] | None]:
        """HEAD, and its distance from its upstream; None until all of history is here."""
        gitdir = self._worker.layout.gitdir
        head = head_of(gitdir)
        if head.oid is None or head.upstream_oid is None:
            return head, None
        if head.oid == head.upstream_oid:
            return head, (0, 0)
        if not history_complete(gitdir):
            return head, None
        return head, await self._distance((head.oid, head.upstream_oid))

    async def _distance(self, pair: Pair) -> tuple[int, int] | None:
        """Known within `COUNT_WAIT_S`, or when it is asked for again: git may take a while for
        it, in which the status must not look as if the mount did not answer."""
        if self._counts is None or self._counts[0] != pair:
            if pair not in self._counting:
                self._counting[pair] = trio.Event()
                self.start(self._count, pair)
            with trio.move_on_after(COUNT_WAIT_S):
                await self._counting[pair].wait()
        return self._counts[1] if self._counts is not None and self._counts[0] == pair else None

    async def _count(self, pair: Pair) -> None:
        try:
            self._counts = (pair, await ahead_behind(self._worker.layout.gitdir, *pair))
        finally:
            self._counting.pop(pair).set()

    # -- the index ---------------------------------------------------------------------------

    async def _prime_index(self) -> None:
        """Write the index in a process of its own; git in the mount waits for it.

        Where git has one already (every mount but the first), it is left alone.
        """
        worker = self._worker
        try:
            if not (worker.layout.gitdir / "index").exists():
                await self._sizes_settled()
                await self._git_files_here()
                await self._write_any_index()
                await self._use_fsmonitor()
            self.index_primed = True
        finally:
            worker.filesystem.index_ready.set()

    async def _sizes_settled(self) -> None:
        """Until all sizes are known, or will not be soon: git copes, so it is not worth waiting."""
        hydrator = self._worker.hydrator
        end = trio.current_time() + SIZES_WAIT_S
        while trio.current_time() < end:
            stats = hydrator.stats()
            if stats.remote == "down" or any("object-info" in limit for limit in stats.limits):
                return
            if stats.blobs_total and stats.sizes_known >= stats.blobs_total:
                return
            await trio.sleep(SIZES_POLL_S)

    async def _git_files_here(self) -> None:
        """The untracked cache is primed with hashes of the .gitignore files as git sees them.

        Where attributes convert them that takes the contents; and the first `git status` would
        wait for them anyway. Without them it is only slower.
        """
        with trio.move_on_after(GIT_FILES_WAIT_S):
            try:
                await self._worker.hydrator.bring_git_files()
            except ArtifactFSError as error:
                log.info("the .gitignore files are not here: %s", error.message)

    async def _write_any_index(self) -> None:
        """Without an index git would take every file for deleted: let git write it at worst."""
        try:
            await self._write_index()
        except ArtifactFSError as error:
            log.warning("the index could not be primed, git reads the tree: %s", error.message)
            await run_git("read-tree", "HEAD", gitdir=self._worker.layout.gitdir)

    async def _write_index(self) -> None:
        worker, filesystem = self._worker, self._worker.filesystem
        settings, base = worker.settings, filesystem.base
        options = {
            "gitdir": worker.layout.gitdir,
            "tree": base.tree.hex(),
            "worktree": settings.mount_point,
            "sizes": worker.state.sizes_db,
            "uid": os.getuid() if settings.uid is None else settings.uid,
            "gid": os.getgid() if settings.gid is None else settings.gid,
            "time-ns": base.time_ns,
            "token": filesystem.journal.initial_token,
            "conversion": worker.layout.conversion,
        }
        await filesystem.conversions.settled()
        command = [sys.executable, "-I", "-m", "artifactfs.git.index.primed"]
        command += [f"--{name}={value}" for name, value in options.items()]
        started = trio.current_time()
        printed = await run_quietly([*command, "--need-attributes"], deadline_s=INDEX_DEADLINE_S)
        missing = json.loads(printed).get("missing")
        if missing:
            with trio.move_on_after(SIZES_WAIT_S), suppress(ArtifactFSError):
                await worker.hydrator.prefetch([bytes.fromhex(oid) for oid in missing])
            printed = await run_quietly(command, deadline_s=INDEX_DEADLINE_S)
        if absent := json.loads(printed).get("absent"):
            what = "the commit has names that git refuses or that are too long; they are not shown"
            log.warning(what, extra={"files": absent})
        log.info("the index is written", extra={"seconds": trio.current_time() - started})

    async def _use_fsmonitor(self) -> None:
        """Let git ask the mount what changed; only at first, so that a user can turn it off."""
        gitdir = self._worker.layout.gitdir
        command = self._worker.filesystem.fsmonitor_command(await sound_git())
        for name, value in (("core.fsmonitor", command), ("core.untrackedCache", "true")):
            with trio.CancelScope(shield=True):  # git that is killed may leave its config.lock
                await run_git("config", name, value, gitdir=gitdir, deadline_s=CONFIG_DEADLINE_S)

    # -- compaction --------------------------------------------------------------------------

    async def _watch_gitdir(self) -> None:
        """When git has moved HEAD or written the index, dirty files may equal known blobs.

        Waits until git has been quiet for one interval: a rebase writes the index many times.
        """
        gitdir = self._worker.layout.gitdir
        seen = done = _stamps(gitdir)
        while True:
            await trio.sleep(WATCH_S)
            now = _stamps(gitdir)
            if now == seen and now != done:
                done = now
                await self._compact()
            seen = now

    async def _compact(self) -> None:
        worker = self._worker
        try:
            trees = await trio.to_thread.run_sync(self._trees_of_head)
            count = await worker.filesystem.compact(trees)
        except (ArtifactFSError, OSError, MissingObject) as error:
            log.warning("compaction failed: %s", error)
        except Exception as error:  # a full disk, say, as SQLite puts it
            log.error("compaction failed", exc_info=error)
        else:
            if count:
                log.info("compacted", extra={"files": count})

    def _trees_of_head(self) -> list[bytes]:
        worker = self._worker
        commit = read_head(worker.layout.gitdir).commit
        return [] if commit is None else [worker.odb.commit(commit).tree]


async def sound_git() -> str | None:
    """The path of git, where it is one that a fsmonitor does not confuse: see
    `FileSystem.fsmonitor_command`."""
    path = shutil.which("git")
    words = (await run_git("version")).decode("utf-8", "replace").split() + [""] * 3
    numbers = [int(part) for part in words[2].split(".")[:2] if part.isdecimal()]
    if path is None or numbers < SOUND_GIT:
        return None
    return str(await trio.Path(path).resolve())


def _stamps(gitdir: os.PathLike[str]) -> tuple[int, ...]:
    stamps = []
    for name in ("HEAD", "index"):
        try:
            stamps.append(os.stat(os.path.join(gitdir, name)).st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)
