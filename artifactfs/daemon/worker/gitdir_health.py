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
    reindex,
)

log = logging.getLogger(__name__)


class GitdirHealth:
    """Looks at one gitdir, and tells `damage` what it finds."""

    def __init__(self, gitdir: Path, damage: DamageReport) -> None:
        self._gitdir = gitdir
        self._damage = damage
        self._met_index = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

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

    def met_corrupt(self, file: Path) -> None:
        """A pack or its index. Those of the cache are dropped and fetched again by themselves.

        For any thread."""
        if self._gitdir not in file.parents:
            return
        if file.suffix == ".idx":
            what = "is damaged: what is in its pack is not found"
            self._damage.found(file, what, reindex(file.with_suffix(".pack")))
            if self._token is not None:
                self._token.run_sync_soon(lambda: self._met_index.set())
        else:
            what = "is damaged: an object in it cannot be read"
            self._damage.found(file, what, refetch(self._gitdir, file))

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

    async def keep_indexes(self, odb: ObjectDatabase) -> None:
        """Mend those that are damaged while they are in use, until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        while True:
            await self._met_index.wait()
            self._met_index = trio.Event()
            try:
                if await self.mend_indexes(deep=True):
                    odb.refresh()
            except OSError as error:
                log.warning("indexes of packs cannot be made anew: %s", error)

    async def explain(self, error: MissingObject | CorruptData) -> ArtifactFSError:
        """An object that the mount needs cannot be read: the file that is to blame."""
        gitdir = self._gitdir
        if isinstance(error, CorruptData) and not gitdir.exists():
            return error  # what was to be cloned
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
