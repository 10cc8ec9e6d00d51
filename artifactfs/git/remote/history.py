"""Phase 2 of a clone: all commits and trees behind every ref.

In steps, where the remote has filters. First all commits: they are a third to a fifth of the bytes
and of the remote's time, and much of git needs no more. Then the trees, by asking for the root tree
of each commit, newest first: so no commit is sent twice, and together it is as many bytes as all
at once (git's own repository: 35.5 MB and 78.1 MB, of 113.6 MB). Without the first step, or with
haves, the remote would send either no trees or all commits again.

Each pack of trees holds whole trees: where a root tree is here, so is everything below it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import ObjectsMissing
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.remote.arriving import OID, ArrivingHistory, GiveWay, RootTrees
from artifactfs.git.remote.fetch import BLOBLESS, is_copied, receive_pack
from artifactfs.git.remote.remote import Remote
from artifactfs.git.repository.commit_graph import write_commit_graph
from artifactfs.git.repository.gitdir import (
    commits_complete,
    history_complete,
    mark_commits_complete,
    mark_history_complete,
)
from artifactfs.git.repository.refs import read_head, read_refs
from artifactfs.paths import RepoLayout

MAX_DEPTH_AT_ONCE = 100
"""A `--depth` up to this is fetched whole before the mount; of a larger one, only the tip."""

PAUSE_S = 1.0
PAUSES_S = 10.0
"""History waits so long between two chunks, and in all, for what somebody asked for: reading what
the network delivers, and indexing it would take half of a small machine."""

TREELESS = "tree:0"
FIRST_PART = 4_000
LARGEST_PART = 64_000
"""Root trees in a request: the first is small, so that recent ones are soon here, each following
one twice as large. A request of 64,000 has 3 MB."""

_LIST_DEADLINE_S = 300.0


async def fetch_history(
    layout: RepoLayout,
    settings: RepoSettings,
    remote: Remote,
    *,
    give_way: GiveWay | None = None,
    arriving: ArrivingHistory | None = None,
) -> None:
    """Fetch what is missing of history. Returns at once when nothing is.

    `give_way` waits for what is more urgent, at most the seconds that it is given; `arriving` is
    told what is here. Interrupted, it goes on after the last pack that was whole.
    Raises: RemoteError, CorruptData.
    """
    gitdir = layout.gitdir
    if await trio.to_thread.run_sync(history_complete, gitdir):
        return
    if arriving is None:
        arriving = ArrivingHistory(gitdir, ObjectDatabase(gitdir), complete=False)
    at_once = settings.depth is not None and settings.depth <= MAX_DEPTH_AT_ONCE
    if remote.alternate is None and not at_once:
        await _Fetch(gitdir, remote, settings.depth, arriving, give_way).run()
    arriving.finish()
    if settings.depth is None and not commits_complete(gitdir):
        await write_commit_graph(gitdir)
    mark_history_complete(gitdir)


class _Fetch:
    """The fetch of one history."""

    def __init__(
        self,
        gitdir: Path,
        remote: Remote,
        depth: int | None,
        arriving: ArrivingHistory,
        give_way: GiveWay | None,
    ) -> None:
        self._gitdir = gitdir
        self._odb = ObjectDatabase(gitdir)
        self._remote = remote
        self._depth = depth
        self._arriving = arriving
        self._give_way_to = arriving.unless_awaited(give_way)
        self._pauses_s = PAUSES_S

    async def run(self) -> None:
        """Raises: RemoteError, CorruptData."""
        capabilities = self._remote.capabilities
        wants = await trio.to_thread.run_sync(self._tips)
        if self._depth is None and capabilities.filter and capabilities.any_oid:
            if not commits_complete(self._gitdir):
                await self._receive(wants, TREELESS)
                mark_commits_complete(self._gitdir)
            self._arriving.commits_are_here()
            if await self._fetch_trees(wants):
                return
        await self._receive(wants, BLOBLESS)

    def _tips(self) -> set[Oid]:
        tips = set(read_refs(self._gitdir).values())
        if (head := read_head(self._gitdir).commit) is not None:
            tips.add(head)
        return tips

    async def _receive(self, wants: set[Oid], filter: str, *, background: bool = False) -> None:
        """Fetch `wants` without haves; what the remote lost since is left out."""
        receive = partial(
            receive_pack,
            self._remote,
            self._gitdir,
            folder="history",
            filter=filter,
            depth=self._depth,
            give_way=self._give_way,
            background=background,
            copied=is_copied(self._remote),
        )
        while wants:
            try:
                await receive(sorted(wants))
                return
            except ObjectsMissing as error:
                if not wants & error.oids:
                    raise
                wants = wants - error.oids

    async def _give_way(self) -> None:
        started = trio.current_time()
        await self._give_way_to(min(PAUSE_S, self._pauses_s))
        self._pauses_s -= min(trio.current_time() - started, self._pauses_s)

    async def _fetch_trees(self, tips: set[Oid]) -> bool:
        """Fetch the trees of the commits that are here; False where git cannot list them."""
        try:
            newest_first = await self._root_trees(tips)
        except GitFailed:
            return False
        roots = await trio.to_thread.run_sync(RootTrees, newest_first)
        self._arriving.roots_are_known(roots, self._fetch_alone)
        size, at = FIRST_PART, 0
        while at < len(newest_first):
            part = newest_first[at : at + size * OID]
            at += len(part)
            oids = dict.fromkeys(part[i : i + OID] for i in range(0, len(part), OID))
            missing = set(await trio.to_thread.run_sync(self._odb.missing, oids))
            self._arriving.expect(missing)
            await self._receive(missing, BLOBLESS, background=not self._arriving.is_awaited)
            self._arriving.note_packs()
            if size == FIRST_PART and at < len(newest_first):
                await write_commit_graph(self._gitdir)
            size = min(2 * size, LARGEST_PART)
        return True

    async def _root_trees(self, tips: set[Oid]) -> bytes:
        """The oid of the tree of each commit, newest first; some more than once."""
        tips = tips - set(await trio.to_thread.run_sync(self._odb.missing, tips))
        listed = await run_git(
            *("rev-list", "--stdin", "--format=%T", "--no-commit-header"),
            gitdir=self._gitdir,
            stdin=b"".join(oid.hex().encode() + b"\n" for oid in sorted(tips)),
            deadline_s=_LIST_DEADLINE_S,
        )
        return bytes.fromhex(listed.decode("ascii"))

    async def _fetch_alone(self, root: Oid) -> None:
        """Fetch a tree, which somebody waits for, before its turn."""
        folder = f"tree-{root.hex()}"
        copied = is_copied(self._remote)
        await receive_pack(
            self._remote, self._gitdir, [root], folder=folder, urgent=True, copied=copied
        )
