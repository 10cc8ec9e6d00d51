"""What can be told of a history that may not be here yet, without asking git, which would fetch.

Commits are visited in the order of their times, the youngest first, as git does. A commit that is
not here was not made here: the remote has promised it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable

from artifactfs.errors import CorruptData
from artifactfs.git.objects.database import CommitInfo, MissingObject, ObjectDatabase, Oid

_SKEW_S = 7 * 86400
"""A child is hardly ever older than its parent by so much, whatever the clocks said."""


def is_ancestor(odb: ObjectDatabase, old: Oid, new: Oid) -> bool:
    """Whether `old` is in the history of `new`.

    Blocks on the disk: some 50 µs a commit. Raises: MissingObject where that depends on commits
    that are not here; CorruptData.
    """
    limit = odb.commit(old).commit_time - _SKEW_S
    seen = {new}
    missing: MissingObject | None = None
    first = odb.commit(new)
    heap = [(-first.commit_time, first.oid, first)]
    while heap:
        commit = heapq.heappop(heap)[2]
        if commit.oid == old:
            return True
        if commit.commit_time < limit:
            break
        for parent in set(commit.parents) - seen:
            seen.add(parent)
            try:
                found = odb.commit(parent)
            except MissingObject as error:
                missing = error
            else:
                heapq.heappush(heap, (-found.commit_time, found.oid, found))
    if missing is not None:
        raise missing
    return False


def made_here(
    odb: ObjectDatabase,
    ours: Iterable[Oid],
    theirs: Iterable[Oid],
    promised: Callable[[Oid], bool],
) -> set[Oid]:
    """The commits in the history of `ours` that are not in that of `theirs`.

    Where that cannot be told because commits are not here, what is `promised` came from the
    remote. Blocks on the disk: 2 µs for each of `theirs` that is not here, some 50 µs for each
    commit that has to be looked at. Raises: MissingObject of `ours`, CorruptData.
    """
    theirs = set(theirs)
    tips = set(ours) - theirs
    if not tips:
        return set()
    walk = _Paint(odb)
    for oid in tips:
        walk.add(odb.commit(oid), theirs=False)
    for oid in theirs - set(odb.missing(theirs)):
        try:
            walk.add(odb.commit(oid), theirs=True)
        except (MissingObject, CorruptData):
            continue  # the tag of a file, say: it leads to no commit
    walk.run()
    if walk.incomplete:
        return {oid for oid in walk.ours() if not promised(oid)}
    return walk.ours()


class _Paint:
    """A walk from two sides. A commit that both reach is theirs, and so are its parents."""

    def __init__(self, odb: ObjectDatabase) -> None:
        self._odb = odb
        self._theirs: dict[Oid, bool] = {}
        self._times: dict[Oid, int] = {}
        self._heap: list[tuple[int, Oid, CommitInfo]] = []
        self.incomplete = False

    def add(self, commit: CommitInfo, *, theirs: bool) -> None:
        self._theirs[commit.oid] = self._theirs.get(commit.oid, False) or theirs
        self._times[commit.oid] = commit.commit_time
        heapq.heappush(self._heap, (-commit.commit_time, commit.oid, commit))

    def run(self) -> None:
        """Until nothing can change: no commit of ours alone is left to be visited, nor one that
        could be a child of one."""
        while self._heap and (
            any(not self._theirs[oid] for _, oid, _ in self._heap)
            or -self._heap[0][0] >= self._oldest_of_ours()
        ):
            for _ in range(max(1, len(self._heap) // 2)):
                if not self._heap:
                    break
                self._visit(heapq.heappop(self._heap)[2])

    def _oldest_of_ours(self) -> float:
        """A child may have been made in the same second."""
        return min((self._times[oid] for oid in self.ours()), default=math.inf)

    def _visit(self, commit: CommitInfo) -> None:
        theirs = self._theirs[commit.oid]
        for oid in commit.parents:
            before = self._theirs.get(oid)
            if before is None or theirs > before:
                try:
                    self.add(self._odb.commit(oid), theirs=theirs)
                except MissingObject:
                    self.incomplete = True

    def ours(self) -> set[Oid]:
        return {oid for oid, theirs in self._theirs.items() if not theirs}
