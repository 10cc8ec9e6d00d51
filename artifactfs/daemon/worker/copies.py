"""Has everything here for whoever copies the repository out of a mount.

`git clone`, `git fetch` from the mount and `git bundle` send objects by ``pack-objects``, which may
not fetch what it misses (git forbids that below ``upload-pack``). It looks into the directory of
offered objects first, and waits: the blobs of the tree are fetched, or those of all of history
where it wants an older one.

``git clone PATH`` and ``--reference`` copy or borrow the object directory itself, as it is. The
copy knows no remote that promised anything, so it must be whole, and what is in the shared cache is
evicted some day. But before, git lists the refs, by an ``upload-pack`` or ``for-each-ref`` that
looks for our alternates and packs, and waits; by then every blob of history is in packs of the
gitdir.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.fs.gitview.callers import GitCommand, git_command
from artifactfs.git.command import feed_git, run_git
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.pack.index import PackIndex
from artifactfs.hydration.hydrator import Hydrator

log = logging.getLogger(__name__)

COPY_S = 3600.0
"""A copy of a large repository is waited for that long; then git goes on with what is here."""

_LIST = (
    *("rev-list", "--objects", "--no-object-names", "--all", "--missing=print"),
    *("--filter=object:type=blob", "--filter-provided-objects"),
)
_LISTS_REFS = ("upload-pack", "for-each-ref")
_SENDERS = ("upload-pack", "bundle")
_GENERATIONS = 3
"""Between a git command and the one that it started may be a shell or two."""


class Copies:
    """The copies that are made of one mount's repository."""

    def __init__(
        self, gitdir: Path, *, odb: ObjectDatabase, hydrator: Hydrator, history_done: trio.Event
    ) -> None:
        """`history_done` is set when all commits and trees are here."""
        self._gitdir = gitdir
        self._odb = odb
        self._hydrator = hydrator
        self._history_done = history_done
        self._lock = trio.Lock()
        self._done_for: GitCommand | None = None

    async def before_missing(self, command: GitCommand, oid: Oid) -> None:
        """`command` is about to send `oid`, or is asked for it: fetch it, and what is like it.

        Waits for the network, up to `COPY_S`; raises nothing.
        """
        sends = command.name == "upload-pack" or _started_by(command, _SENDERS) is not None
        if not sends or self._odb.contains(oid):
            return
        with trio.move_on_after(COPY_S):
            try:
                async with self._lock:
                    await self._fetch(await trio.to_thread.run_sync(self._blobs_of_tree))
                    if not self._odb.contains(oid):
                        await self._fetch(await self._blobs_of_history())
            except (ArtifactFSError, OSError) as error:
                log.warning("a copy of the repository is not whole: %s", error)

    async def before_packs(self, command: GitCommand) -> None:
        """`command` has begun: if for somebody who copies the object directory, make it whole.

        Waits for the network, up to `COPY_S`; raises nothing.
        """
        if command.name not in _LISTS_REFS or not _copies_the_directory(command):
            return
        with trio.move_on_after(COPY_S):
            try:
                async with self._lock:
                    if self._done_for != command:  # it looks more than once
                        await self._keep_everything()
                        self._done_for = command
            except (ArtifactFSError, OSError) as error:
                log.warning("a copy of the repository is not whole: %s", error)

    async def _keep_everything(self) -> None:
        """Every blob of history into packs of the gitdir. Raises: ArtifactFSError, OSError."""
        oids = await self._blobs_of_history()
        await self._fetch(oids)
        absent = await trio.to_thread.run_sync(_not_in, self._gitdir / "objects", oids)
        if not absent:
            return
        log.info("keeping all blobs beside the history, for a copy", extra={"blobs": len(absent)})
        packs = self._gitdir / "objects" / "pack"
        arguments = ("pack-objects", "-q", "--delta-base-offset", str(packs / "pack"))
        async with feed_git(*arguments, gitdir=self._gitdir) as sink:
            await sink.send(b"".join(b"%s\n" % oid.hex().encode() for oid in absent))
            name = (await sink.finish(deadline_s=COPY_S)).decode().strip()
        (packs / f"pack-{name}.promisor").touch()

    async def _blobs_of_history(self) -> list[Oid]:
        await self._history_done.wait()
        printed = await run_git(*_LIST, gitdir=self._gitdir, deadline_s=COPY_S)
        return [bytes.fromhex(line.removeprefix("?")) for line in printed.decode().split()]

    def _blobs_of_tree(self) -> list[Oid]:
        inventory = self._hydrator.offered.inventory
        if inventory is None:
            return []
        positions = (inventory.beginning_with(byte) for byte in range(256))
        return [inventory.oid_at(position) for some in positions for position in some]

    async def _fetch(self, oids: Iterable[Oid]) -> None:
        missing = self._odb.missing(oids)
        if missing:
            log.info("fetching blobs for a copy", extra={"blobs": len(missing)})
            await self._hydrator.offered.fetch_all(missing)


def _not_in(objects: Path, oids: Iterable[Oid]) -> list[Oid]:
    """Those of `oids` that the directory itself has not. Raises: CorruptData, OSError."""
    packs = [PackIndex(path) for path in (objects / "pack").glob("*.idx")]
    return [
        oid
        for oid in oids
        if all(pack.offset(oid) is None for pack in packs)
        and not (objects / oid.hex()[:2] / oid.hex()[2:]).exists()
    ]


def _copies_the_directory(command: GitCommand) -> bool:
    clone = _started_by(command, ("clone",))
    if clone is None:
        return False
    if command.name == "for-each-ref":  # of an alternate: --reference
        return True
    return not any(a == "--no-local" or a.startswith("file://") for a in clone.arguments)


def _started_by(command: GitCommand, names: Iterable[str]) -> GitCommand | None:
    """The git command called one of `names` that started `command`, by a shell perhaps."""
    for ancestor in _ancestors(command):
        if ancestor is not None:
            return ancestor if ancestor.name in names else None
    return None


def _ancestors(command: GitCommand) -> Iterator[GitCommand | None]:
    pid = command.parent()
    for _ in range(_GENERATIONS):
        if pid <= 1:
            return
        yield git_command(pid)
        pid = GitCommand(pid, "", ()).parent()
