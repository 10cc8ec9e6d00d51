"""Damage in the gitdir of a mount: mended where git can, else named."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import trio

from artifactfs.damage import DamageReport
from artifactfs.errors import ArtifactFSError, CorruptData, StateError
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from artifactfs.git.remote.clone import Tip, unborn_tip
from artifactfs.git.repository.refs import read_head
from artifactfs.git.repository.soundness import (
    Fault,
    drop_damaged_derived,
    drop_damaged_own_config,
    faults,
    mend_indexes,
    refetch,
)

log = logging.getLogger(__name__)


class GitdirHealth:
    """Looks at one gitdir, and tells `damage` what it finds."""

    def __init__(self, gitdir: Path, damage: DamageReport) -> None:
        self._gitdir = gitdir
        self._damage = damage

    def drop_damaged_own_config(self) -> None:
        """See `soundness`. Raises: OSError."""
        self._mended(drop_damaged_own_config(self._gitdir))

    async def mend_indexes(self, *, deep: bool) -> int:
        """Have those of its packs made anew that are damaged. Returns how many were."""
        mended = await mend_indexes(self._gitdir, deep=deep)
        self._mended(mended)
        return len(mended)

    def _mended(self, found: list[Fault]) -> None:
        for fault in found:
            self._damage.mended(fault.path, fault.what, fault.mend)

    def met_corrupt(self, pack: Path) -> None:
        """Those of the cache are dropped and fetched again by themselves."""
        if self._gitdir in pack.parents:
            what = "is damaged: an object in it cannot be read"
            self._damage.found(pack, what, refetch(self._gitdir, pack))

    async def look(self, odb: ObjectDatabase) -> None:
        """Mend or say which of its files are damaged; what can be read is served all the same."""
        try:
            if await self.mend_indexes(deep=True):
                odb.refresh()
            self._mended(await trio.to_thread.run_sync(drop_damaged_derived, self._gitdir))
            found = await trio.to_thread.run_sync(lambda: list(faults(self._gitdir)))
        except OSError as error:
            log.warning("the gitdir cannot be looked through: %s", error)
            return
        for fault in found:
            self._damage.found(fault.path, fault.what, fault.mend)

    async def explain(self, error: MissingObject | CorruptData) -> ArtifactFSError:
        """An object that the mount needs cannot be read: the file that is to blame."""
        gitdir = self._gitdir
        if await self.mend_indexes(deep=True):
            return StateError(f"{gitdir}: {error}", hint="git has mended it, and it is tried again")
        fault = await trio.to_thread.run_sync(lambda: next(faults(gitdir), None))
        if fault is not None:
            return StateError(f"{fault} ({error})", hint=fault.mend)
        if isinstance(error, CorruptData):
            return error
        refetch_all = f"git --git-dir={shlex.quote(str(gitdir))} fetch --all --refetch"
        return StateError(f"{gitdir}: {error}", hint=refetch_all)


def tip_of_head(gitdir: Path, odb: ObjectDatabase) -> Tip | None:
    """What to mount if there is no overlay yet though the clone is there (a crash between)."""
    try:
        head = read_head(gitdir)
        if head.commit is None:
            return unborn_tip(head.ref)
        commit = odb.commit(head.commit)
    except (StateError, CorruptData, MissingObject):  # where there is one, it is not needed
        return None
    return Tip(commit.oid, commit.tree, head.ref, commit.commit_time)
