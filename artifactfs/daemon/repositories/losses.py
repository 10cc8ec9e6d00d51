"""What removing a repository would lose: unpushed commits, snapshots, stashes; local changes of no
mount.

Those in a mount only git can tell, since ignored files do not count. It has to look into the
mount for that, so whoever asks for the removal asks git, and tells us what it said.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from artifactfs.errors import CorruptData, StateError
from artifactfs.fs.native.writes import count_entries, is_native, lost
from artifactfs.fs.overlay.database import faults, is_missing, missing, read_base
from artifactfs.fs.tree.compaction import PromisedObjects
from artifactfs.git.objects.ancestry import made_here
from artifactfs.git.objects.database import CommitInfo, MissingObject, ObjectDatabase, Oid
from artifactfs.git.repository.refs import PUSHED, SNAPSHOTS, read_head, read_refs
from artifactfs.paths import RepoLayout
from artifactfs.system.locks import is_locked

log = logging.getLogger(__name__)

SHOWN = 3  # paths in a message
_BRANCHES = "refs/heads/"
_TAGS = "refs/tags/"
_THEIRS = ("refs/remotes/", PUSHED)


async def kept_only_here(layout: RepoLayout, mounted: str | None) -> dict[str, Any]:
    """Commits that no remote-tracking branch and no tag of the remote has, snapshots that were not
    pushed, and stashes. Needs no mount.

    None where the gitdir is somebody else's: it stays.
    """
    if layout.gitdir.is_symlink():
        return {"unpushed": 0, "snapshots": 0, "stashes": 0}
    return await trio.to_thread.run_sync(_kept_only_here, layout.gitdir, mounted)


def _kept_only_here(gitdir: Path, mounted: str | None) -> dict[str, Any]:
    refs = read_refs(gitdir)
    ours = {oid for name, oid in refs.items() if name.startswith(_BRANCHES)}
    theirs = {oid for name, oid in refs.items() if name.startswith(_THEIRS)}
    if (head := read_head(gitdir).commit) is not None:
        ours.add(head)
    if mounted is not None:
        theirs.add(bytes.fromhex(mounted))
    odb, promised = ObjectDatabase(gitdir), PromisedObjects(gitdir)
    for oid in {oid for name, oid in refs.items() if name.startswith(_TAGS)}:
        (ours if _was_made_here(odb, oid, promised) else theirs).add(oid)
    snapshots = [odb.commit(oid) for oid in _unpushed_snapshots(refs)]
    ours |= {parent for snapshot in snapshots for parent in snapshot.parents}
    try:
        unpushed = made_here(odb, ours, theirs, promised.__contains__)
    except MissingObject as error:
        raise StateError(
            f"a branch of {gitdir} has a commit that is not here ({error.oid.hex()})",
            hint="git fetch in the mount gets it, or give --force to delete all",
        ) from error
    return {
        "unpushed": len(unpushed),
        "snapshots": sum(_has_changes(odb, snapshot) for snapshot in snapshots),
        "stashes": _stashes(gitdir),
    }


def _was_made_here(odb: ObjectDatabase, tag: Oid, promised: PromisedObjects) -> bool:
    """Whether the commit that a tag names did not come from the remote: a tag alone does not say
    so, since whoever works in the mount makes tags, too."""
    if tag in promised:
        return False
    try:
        return odb.commit(tag).oid not in promised
    except (MissingObject, CorruptData):
        return False  # what is not here was not made here; the tag of a file leads to no commit


def _unpushed_snapshots(refs: Mapping[str, Oid]) -> set[Oid]:
    here = {
        name.removeprefix(SNAPSHOTS): oid
        for name, oid in refs.items()
        if name.startswith(SNAPSHOTS)
    }
    return {oid for name, oid in here.items() if refs.get(PUSHED + name) != oid}


def _has_changes(odb: ObjectDatabase, snapshot: CommitInfo) -> bool:
    """Whether it has something that the commit has not which it was taken at."""
    return all(odb.commit(parent).tree != snapshot.tree for parent in snapshot.parents)


def _stashes(gitdir: Path) -> int:
    """Each is a line of the log of ``refs/stash`` (git-stash(1))."""
    try:
        return (gitdir / "logs" / "refs" / "stash").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


async def check_unmounted(name: str, layout: RepoLayout) -> None:
    """Refuse where an unmounted repository may have something to lose.

    What its overlay holds can be committed and pushed already: only git in the mount knows, so
    this errs on the safe side. Raises: StateError.
    """
    dirty, mounted = await trio.to_thread.run_sync(read_overlay, layout)
    if dirty:
        raise StateError(
            f"{name} may have local changes ({dirty} entries in its overlay)",
            hint=f"look with artifact-fs remount --name {name} and git status, or give --force",
        )
    if layout.gitdir.exists():
        refuse(name, {"changes": [], **await kept_only_here(layout, mounted)})


def read_overlay(layout: RepoLayout) -> tuple[int, str | None]:
    """How many names differ from the mounted commit, and that commit (hex). Raises: CorruptData."""
    try:
        if is_missing(layout):
            raise missing(layout)
        if (error := lost(layout)) is not None:
            raise error
        if not layout.overlay_db.exists():
            return 0, None
        dirty, commit = read_base(layout.overlay_db)
    except StateError as error:
        raise CorruptData(error.message, hint="give --force to delete it anyway") from error
    if is_native(layout):
        dirty = _written_by_the_kernel(layout)
    return dirty, commit.hex() if commit else None


def overlay_faults(layout: RepoLayout) -> Iterator[StateError]:
    """What a mount would say of the overlay. Where one has it open, it has told the daemon. Raises:
    OSError."""
    database = layout.overlay_db
    if is_missing(layout):
        yield missing(layout)
    elif (error := lost(layout)) is not None:
        yield error
    elif database.exists() and (database.stat().st_size == 0 or not is_locked(layout.worker_lock)):
        yield from faults(database)


def _written_by_the_kernel(layout: RepoLayout) -> int:
    """Raises: CorruptData."""
    try:
        return count_entries(layout)
    except OSError as error:
        raise CorruptData(
            f"{layout.native_upper} cannot be read: {error.strerror}",
            hint="give --force to delete it anyway",
        ) from error


def refuse(name: str, found: dict[str, Any]) -> None:
    """Raises: StateError if `found` is not empty: ``changes``, and what `kept_only_here` says."""
    changes, unpushed, stashes = found["changes"], found["unpushed"], found["stashes"]
    parts = []
    if changes:
        more = ", …" if len(changes) > SHOWN else ""
        parts.append(f"{_count(len(changes), 'local change')} ({', '.join(changes[:SHOWN])}{more})")
    if unpushed:
        parts.append(_count(unpushed, "unpushed commit"))
    if found["snapshots"]:
        parts.append(_count(found["snapshots"], "unpushed snapshot"))
    if stashes:
        parts.append(f"{stashes} stash{'es' if stashes > 1 else ''}")
    if parts:
        raise StateError(
            f"{name} has {' and '.join(parts)}",
            hint="commit and push them, or give --force to delete them",
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
