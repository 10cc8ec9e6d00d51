"""Fetching into a gitdir that is there: packs, and what is new on the remote.

Packs go into ``git index-pack``: it takes 190,000 commits and trees without holding this process.
They are indexed in a folder of ours and moved when complete, so that nothing interrupted is ever
taken for a pack.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import CorruptData, ObjectsMissing, RemoteNotFound, StateError
from artifactfs.git.command import GitFailed, GitSink, feed_git, run_git
from artifactfs.git.configuration.checking import fsck_arguments
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.remote.remote import Remote
from artifactfs.git.repository.gitdir import adopt_packs, read_shallow, write_shallow
from artifactfs.git.repository.refs import read_head, read_refs, valid_ref
from artifactfs.git.repository.refspecs import TrackedRemote, tracked_remote
from artifactfs.git.repository.staging import remove_staging, staging_folder
from artifactfs.git.wire.greeting import PackStream, TipPack
from artifactfs.git.wire.protocol import RefAdvertisement
from artifactfs.paths import RepoLayout

BLOBLESS = "blob:none"
MAX_HISTORY = 16 << 30
"""Bytes of a pack of commits and trees: those of all of Linux have 1.3 GB."""
MAX_COMMIT = 1 << 30
"""The same for one commit: a tree of a million files has 60 MB."""
MAX_PIECE = 2 << 30
"""Bytes that ``index-pack`` may hold in one piece. A pack of a few MB inflates to as many GB, and
git holds a commit or tree as a whole (blobs it streams). Its list of the objects is one piece, too:
64 bytes each, so 33 million commits and trees; all of Linux has 9 million."""
SHARE_OF_DISK = 0.9
"""Of the space that is free when it begins to come: the most for a remote that sends blobs, too."""
_MAX_HAVES = 256
_REF_DEADLINE_S = 60.0
_TRACKING = "refs/remotes/"


@dataclass(frozen=True, slots=True)
class RefChange:
    """A ref of the gitdir (full name) that a fetch moved; None: it was not there, is gone."""

    name: str
    old: Oid | None
    new: Oid | None


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What a fetch changed: remote-tracking branches and new tags, in order of their names."""

    changes: tuple[RefChange, ...]


def tracked_refs(
    advertised: RefAdvertisement, remote: TrackedRemote
) -> tuple[dict[str, Oid], dict[str, Oid]]:
    """Remote-tracking branches and tags, and what annotated tags peel to.

    Names that are not well-formed are left out: they become lines of a file.
    """
    refs: dict[str, Oid] = {}
    for name, oid in advertised.refs.items():
        if valid_ref(name):
            refs |= {local: oid for local in remote.local_names(name) if valid_ref(local)}
    peeled = {name: oid for name, oid in advertised.peeled.items() if name in refs}
    return refs, peeled


async def receive_pack(
    remote: Remote,
    gitdir: Path,
    wants: Collection[Oid],
    *,
    folder: str,
    filter: str = BLOBLESS,
    haves: Collection[Oid] = (),
    depth: int | None = None,
    give_way: Callable[[], Awaitable[None]] | None = None,
    urgent: bool = False,
    background: bool = False,
    copied: bool = False,
) -> None:
    """Fetch a pack without blobs into `gitdir`, by way of ``artifactfs/FOLDER``.

    `give_way` is awaited after each chunk. `urgent`: somebody waits for it;
    `background`: nobody does; `copied` as `is_copied` has it. Where the remote left
    out parents, ``shallow`` is brought up to date.
    Raises: RemoteError, CorruptData.
    """
    known_shallow = read_shallow(gitdir)
    fetching = remote.fetch_pack(
        wants, filter=filter, haves=haves, depth=depth, shallow=known_shallow, urgent=urgent
    )
    pack = await _store(
        fetching,
        gitdir,
        folder=folder,
        most=MAX_HISTORY if remote.capabilities.filter else None,
        give_way=give_way,
        background=background,
        copied=copied,
    )
    shallow = (known_shallow | pack.shallow) - pack.unshallow
    if shallow != known_shallow:
        write_shallow(gitdir, shallow)


def is_copied(remote: Remote) -> bool:
    """Whether a clone of it is a copy of files for git, which looks for no faults in it: of a
    path, not of a URL. What is fetched from it later is looked at."""
    return remote.name.startswith("/")


def most_of_commit(remote: Remote) -> int | None:
    """The bytes that one commit with its trees may have: see `feed_pack`."""
    return MAX_COMMIT if remote.capabilities.filter else None


async def _store(
    fetching: AbstractAsyncContextManager[PackStream | TipPack],
    gitdir: Path,
    *,
    folder: str,
    most: int | None,
    give_way: Callable[[], Awaitable[None]] | None = None,
    background: bool = False,
    copied: bool = False,
) -> PackStream | TipPack:
    """Index what `fetching` receives in a staging folder, and move it when it is whole.
    `most` as `feed_pack` has it; `copied` as `is_copied` has it.

    Raises: RemoteError, CorruptData.
    """
    staging = await trio.to_thread.run_sync(staging_folder, gitdir, folder)
    environment = {"GIT_OBJECT_DIRECTORY": str(staging)}
    try:
        (staging / "pack").mkdir()
        checks = () if copied else await fsck_arguments(gitdir)
        async with (
            index_pack(gitdir, environment, checks=checks, background=background) as sink,
            fetching as pack,
        ):
            await feed_pack(pack, sink, staging, most=most, give_way=give_way)
        await trio.to_thread.run_sync(adopt_packs, staging, gitdir / "objects")
        return pack
    except GitFailed as error:
        raise CorruptData(f"a fetched pack is not usable: {why_unusable(error)}") from error
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove_staging, staging)


def index_pack(
    gitdir: Path,
    environment: Mapping[str, str] | None = None,
    *,
    checks: Iterable[str] = (),
    background: bool = False,
) -> AbstractAsyncContextManager[GitSink]:
    """``git index-pack`` of a pack that a remote sends, bounded in what it holds. `checks` are the
    `fsck_arguments`."""
    bounds = {"GIT_ALLOC_LIMIT": str(MAX_PIECE)}
    return feed_git(
        *("index-pack", "--promisor", "--stdin", *checks),
        gitdir=gitdir,
        env=bounds | dict(environment or {}),
        background=background,
    )


def why_unusable(error: GitFailed) -> str:
    """What `index_pack` has against a pack."""
    if "over limit" in error.message:
        return f"the remote sent an object of more than {MAX_PIECE} bytes"
    if "fsck error" in error.message:
        faults = [line for line in error.stderr.splitlines() if line.startswith("error: object ")]
        if faults:
            return f"{faults[0].removeprefix('error: ')} (fetch.fsckObjects is set)"
    return error.message


async def feed_pack(
    pack: PackStream | TipPack,
    sink: GitSink,
    directory: Path,
    *,
    most: int | None,
    give_way: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Give `pack` to ``index-pack``, which stores it in `directory`, and wait for it.

    Raises: RemoteError; CorruptData where it is larger than `most` bytes, or nearly fills the
    disk; GitFailed, at once where git refuses what has come so far.
    """
    disk = await trio.to_thread.run_sync(os.statvfs, directory)
    room = int(disk.f_bavail * disk.f_frsize * SHARE_OF_DISK)
    most = room if most is None else min(most, room)
    received = 0
    async for chunk in pack:
        received += len(chunk)
        if received > most:
            why = "there is no room for more" if most == room else "commits and trees have less"
            raise CorruptData(f"the remote sent more than {most} bytes in one pack: {why}")
        if not await sink.send(chunk):
            break
        if give_way is not None:
            await give_way()
    await sink.finish()


async def fetch_refs(layout: RepoLayout, settings: RepoSettings, remote: Remote) -> FetchResult:
    """A background ``git fetch --prune``: one request when nothing is new, two otherwise.

    Brings remote-tracking branches and new tags up to date; never touches the working tree, the
    index, local branches or tags that are here. With a depth only the branch of the clone is
    followed. Raises: RemoteError, CorruptData, StateError when refs are locked or were moved by
    another process meanwhile.
    """
    gitdir = layout.gitdir
    tracked = await tracked_remote(gitdir, settings.remote, whole=settings.depth is None)
    prefixes = tracked.prefixes()
    advertised = await remote.ls_refs(prefixes) if prefixes else RefAdvertisement(None, {})
    theirs, _ = tracked_refs(advertised, tracked)
    ours = await trio.to_thread.run_sync(read_refs, gitdir)
    changes = ref_changes(ours, theirs, tracked)
    wanted = {change.new for change in changes if change.new is not None}
    missing = await trio.to_thread.run_sync(_missing, gitdir, wanted)
    if missing:
        haves = known_commits(ours, read_head(gitdir).commit)
        await receive_pack(remote, gitdir, missing, folder="fetch", haves=haves)
    await _apply(gitdir, changes)
    return FetchResult(changes)


def ref_changes(
    ours: dict[str, Oid], theirs: dict[str, Oid], tracked: TrackedRemote
) -> tuple[RefChange, ...]:
    """What makes `ours` follow `theirs`: tags are only added, branches also moved and removed."""
    changes = []
    for name in sorted(ours.keys() | theirs.keys()):
        old, new = ours.get(name), theirs.get(name)
        follows = tracked.owns(name) or (old is None and new is not None)
        if old != new and follows:
            changes.append(RefChange(name, old, new))
    return tuple(changes)


def known_commits(refs: dict[str, Oid], head: Oid | None) -> list[Oid]:
    """What to tell the remote that we have: HEAD and branches first, then tags."""
    order = sorted(refs, key=lambda name: (not name.startswith(_TRACKING), name))
    known = [head] if head is not None else []
    return list(dict.fromkeys([*known, *(refs[name] for name in order)]))[:_MAX_HAVES]


def _missing(gitdir: Path, oids: Iterable[Oid]) -> list[Oid]:
    database = ObjectDatabase(gitdir)
    return [oid for oid in sorted(oids) if not database.contains(oid)]


async def _apply(gitdir: Path, changes: Iterable[RefChange]) -> None:
    """Move the refs in git's own transactions, expecting their old values.

    Removals come first, as in git: a branch ``a`` has to go before ``a/b`` can come.
    """
    changes = list(changes)
    for gone in (True, False):
        lines = [_instruction(change) for change in changes if (change.new is None) == gone]
        if not lines:
            continue
        try:
            await run_git(
                *("update-ref", "--stdin", "-z", "-m", "fetch"),
                gitdir=gitdir,
                stdin=b"".join(lines),
                deadline_s=_REF_DEADLINE_S,
            )
        except GitFailed as error:
            hint = "artifact-fs doctor"
            if "lock" in error.message:
                hint = "another git command was at work; the next fetch updates them"
            raise StateError(f"refs could not be updated: {error.message}", hint=hint) from error


def _instruction(change: RefChange) -> bytes:
    name = change.name.encode("utf-8", "surrogateescape")
    old = change.old.hex().encode() if change.old else b"0" * 40
    if change.new is None:
        return b"delete %s\0%s\0" % (name, old)
    return b"update %s\0%s\0%s\0" % (name, change.new.hex().encode(), old)


async def fetch_commit(gitdir: Path, remote: Remote, oid: Oid, *, filter: str = BLOBLESS) -> None:
    """Fetch `oid` (a commit, or a tag of one) and its trees, or what `filter` leaves of them,
    without parents.

    ``shallow`` stays as it is: parents that are not here are promised objects. One round trip.
    Raises: RemoteError (RemoteNotFound where the remote does not have it), CorruptData.
    """
    fetching = remote.fetch_pack([oid], filter=filter, depth=1)
    try:
        await _store(fetching, gitdir, folder=f"commit-{oid.hex()}", most=most_of_commit(remote))
    except ObjectsMissing as error:
        raise RemoteNotFound(f"the remote has no commit {oid.hex()}") from error
