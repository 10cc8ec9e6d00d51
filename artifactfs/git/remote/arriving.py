"""History that is on its way: what of it is here, and who waits for the rest.

`fetch_history` reports its steps here, and `fs/gitview/gate.py` has git wait here for objects that
it would otherwise report as missing. A wait ends when the object is here, when the fetch fails, or
after `LONGEST_S`. After a failure nothing waits until the next try has received something.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.remote.frontier import Frontier

GiveWay = Callable[[float], Awaitable[None]]
FetchTree = Callable[[Oid], Awaitable[None]]

OID = 20
"""Bytes."""

LONGEST_S = 1_800.0
"""A wait ends then, whatever happens: the history of Linux takes a third of it at 10 MB/s."""

MOST_ALONE = 50
"""Trees that are fetched before their turn, each in a pack of its own, for who needs but some. Who
walks through all of history is served sooner if it waits for the large packs."""
OF_GIT_S = 1.0
"""A fetch of git's takes about so long after it was last seen to look for an object."""
LOOK_EVERY_S = 0.05
_UNIQUE = 7
"""Digits by which git names an object in short: fewer may mean another one when all are here."""


class RootTrees:
    """The root trees of many commits: 20 bytes each. Making it sorts them: call it in a thread."""

    def __init__(self, oids: bytes) -> None:
        distinct = {oids[at : at + OID] for at in range(0, len(oids), OID)}
        self._sorted = b"".join(sorted(distinct))

    def __contains__(self, oid: Oid) -> bool:
        low, high = 0, len(self._sorted) // OID
        while low < high:
            middle = (low + high) // 2
            found = self._sorted[middle * OID : middle * OID + OID]
            if found == oid:
                return True
            if found < oid:
                low = middle + 1
            else:
                high = middle
        return False


@dataclass(slots=True, eq=False)
class _Alone:
    """The fetch of one tree before its turn; it is `cut` where its reader goes away meanwhile."""

    over: trio.Event = field(default_factory=trio.Event)
    cut: bool = True


class ArrivingHistory:
    """The history of one gitdir. Every method is called from the event loop."""

    def __init__(self, gitdir: Path, odb: ObjectDatabase, *, complete: bool) -> None:
        self._odb = odb
        self._frontier = Frontier(gitdir, odb)
        self._on_its_way = not complete
        self._roots: RootTrees | None = None
        self._has_commits = False
        self._expected: Collection[Oid] = ()
        self._fetch_tree: FetchTree | None = None
        self._changed = trio.Event()
        self._waiting = 0
        self._alone_left = MOST_ALONE
        self._coming: dict[Oid, _Alone] = {}
        """The trees that are being fetched before their turn."""
        self._git_fetched = float("-inf")
        self.done = trio.Event()
        """Is set when all of it is here, and nothing more is done for it."""

    @property
    def on_its_way(self) -> bool:
        """Whether something is missing and a fetch of it has not failed."""
        return self._on_its_way

    @property
    def is_awaited(self) -> bool:
        """Whether a program waits for some of it now."""
        return self._waiting > 0

    def unless_awaited(self, give_way: GiveWay | None) -> GiveWay:
        """`give_way` for a fetch of history, which gives way to nobody while programs wait for it.

        Its call is the sign that the fetch gets an answer.
        """

        async def give_way_or_not(seconds: float) -> None:
            self._on_its_way = True
            left = seconds
            while left > 0 and not self._waiting and self._git_fetches:
                await trio.sleep(LOOK_EVERY_S)
                left -= LOOK_EVERY_S
            if give_way is not None and not self._waiting and left > 0:
                await give_way(left)

        return give_way_or_not

    def note_fetch(self) -> None:
        """Git fetches something that it misses, and somebody waits for that."""
        self._git_fetched = trio.current_time()

    @property
    def _git_fetches(self) -> bool:
        return bool(self._coming) or trio.current_time() < self._git_fetched + OF_GIT_S

    def note_packs(self) -> None:
        """Packs with some of it are in the gitdir."""
        self._change()

    def commits_are_here(self) -> None:
        """All commits are here; their trees will be known in a moment."""
        self._has_commits = True
        self._change()

    def roots_are_known(self, roots: RootTrees, fetch_tree: FetchTree) -> None:
        """The commits have `roots` as their trees. From now on only trees are waited for.

        `fetch_tree` fetches one before its turn.
        """
        self._has_commits = True
        self._roots = roots
        self._fetch_tree = fetch_tree
        self._change()

    def expect(self, trees: Collection[Oid]) -> None:
        """These come with the next pack."""
        self._expected = trees

    def fail(self) -> None:
        """The fetch has failed: nobody waits for it any more."""
        self._on_its_way = self._has_commits = False
        self._expected = ()
        self._fetch_tree = None
        self._change()

    def finish(self) -> None:
        """All of it is here."""
        self._on_its_way = False
        self._roots = self._fetch_tree = None
        self._expected = ()
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def names(self, oid: Oid, *, tree: bool = False) -> bool:
        """Whether what is here names `oid` as part of history, and it may be missing.

        Where it may be a `tree`, and all commits are here, it waits until their trees are known.
        """
        if tree and self._has_commits:
            await self._until(lambda: self._roots is not None)
        if self._roots is not None:
            return oid in self._roots
        return oid in await trio.to_thread.run_sync(self._frontier.oids)

    def is_root(self, oid: Oid) -> bool:
        """Whether `oid` is the tree of a commit, as far as that is known."""
        return self._roots is not None and oid in self._roots

    async def until_here(self, oid: Oid, *, alone: bool = False) -> None:
        """Wait for `oid`, as long as it may come; a tree comes `alone`, before its turn, also where
        the next pack has it."""
        need_not_wait = partial(self._need_not_wait, oid, alone=alone)
        if not need_not_wait():
            await self._until(need_not_wait)
        while (coming := self._coming.get(oid)) is not None:
            await coming.over.wait()
            if not coming.cut:
                return
        fetch = self._fetch_tree
        if fetch is None or self._roots is None or oid not in self._roots:
            return
        if self._odb.contains(oid):
            return
        self._alone_left -= 1
        coming = self._coming[oid] = _Alone()
        try:
            with suppress(ArtifactFSError):  # git will fetch it, or say what is wrong
                await fetch(oid)
            coming.cut = False
        finally:
            del self._coming[oid]
            coming.over.set()

    async def until_complete(self) -> None:
        """Wait until all of it is here, or its fetch has failed."""
        await self._until(lambda: False)

    def _need_not_wait(self, oid: Oid, *, alone: bool) -> bool:
        """Whether it is not worth waiting for packs that are on their way."""
        if self._odb.contains(oid):
            return True
        if self._roots is None or oid not in self._roots:
            return self._roots is not None
        return (alone or oid not in self._expected) and self._alone_left > 0

    async def until_resolvable(self, abbreviation: str) -> None:
        """Wait until what `abbreviation` (hex digits of an oid) means can be told: until all
        commits are here, unless it is long enough and an object that is here begins with it."""

        def can_be_told() -> bool:
            if self._roots is not None:
                return True
            return len(abbreviation) >= _UNIQUE and self._odb.has_prefix(abbreviation)

        await self._until(can_be_told)

    async def _until(self, condition: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            with trio.move_on_after(LONGEST_S):
                while self._on_its_way:
                    changed = self._changed
                    if condition():
                        return
                    await changed.wait()
        finally:
            self._waiting -= 1
