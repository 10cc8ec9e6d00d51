"""A clone in two phases: the trees of one commit at once, all of history behind it.

Phase 1 (`clone_tip`) fetches the tip's commit and trees as from depth 1, but writes no
``shallow`` file: the parents are then promised objects like any other, so that git is right at
every moment; a `git log` that comes early pulls the history itself. Phase 2 (`fetch_history`)
fetches it in the background. `--depth` asks for the shallow file, and gets it.

The trees of a large tip take a while (28 MB where there are a million files). Where they do, phase
1 takes the root tree alone, which is as small as ever, while the others go on to arrive
(`fetch_trees`). A remote that does not send a root tree alone (``uploadpackfilter.tree.maxDepth``
is 0 on some hosts) has lost nothing: its whole answer is on its way meanwhile.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import (
    CorruptData,
    InvalidInput,
    ObjectsMissing,
    RemoteError,
    RemoteNotFound,
)
from artifactfs.git.apart import make_apart
from artifactfs.git.checkout.refused_names import keep_protection
from artifactfs.git.command import GitFailed
from artifactfs.git.configuration.checking import fsck_arguments
from artifactfs.git.configuration.defaults import default_branch, default_remote_name
from artifactfs.git.configuration.entries import as_bool
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.configuration.new_repository import NewRepository, new_repository
from artifactfs.git.objects.database import EMPTY_TREE, MissingObject, ObjectDatabase
from artifactfs.git.remote.fetch import (
    BLOBLESS,
    MAX_HISTORY,
    FetchResult,
    RefChange,
    feed_pack,
    fetch_commit,
    fetch_refs,
    index_pack,
    is_copied,
    most_of_commit,
    tracked_refs,
    why_unusable,
)
from artifactfs.git.remote.history import MAX_DEPTH_AT_ONCE, fetch_history
from artifactfs.git.remote.remote import Remote
from artifactfs.git.repository.gitdir import (
    GitdirPlan,
    mark_trees_here,
    mark_trees_to_come,
    publish,
    sync_gitdir,
    trees_to_come,
    write_gitdir,
    write_shallow,
)
from artifactfs.git.repository.refs import valid_ref
from artifactfs.git.repository.refspecs import (
    default_refspec,
    default_remote,
    parse_refspec,
)
from artifactfs.git.streams.process import is_shallow
from artifactfs.git.wire.greeting import CLONE_PREFIXES, TipWish
from artifactfs.git.wire.protocol import RefAdvertisement
from artifactfs.git.wire.transport import deadline
from artifactfs.git.wire.url import parse_remote
from artifactfs.paths import RepoLayout

T = TypeVar("T")

log = logging.getLogger(__name__)

Oid = bytes

__all__ = [
    "FetchResult",
    "RefChange",
    "Resolved",
    "Tip",
    "clone_tip",
    "fetch_history",
    "fetch_refs",
    "fetch_trees",
    "resolve",
    "tip_wish",
]

_OID = re.compile(r"[0-9a-f]{40}")
_SHORT_OID = re.compile(r"[0-9a-f]{4,39}")
_NAMED = 10
ROOT_TREE = "tree:1"
"""The filter for a commit and its root tree."""
_TEMPORARY = ".git."
_LOCAL_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Tip:
    """The commit to mount. `ref` is the full name it was found under, None for a bare commit or a
    detached remote HEAD; `commit_time` in seconds since 1970."""

    commit: Oid
    tree: Oid
    ref: str | None
    commit_time: int


NO_COMMIT = bytes(20)
"""The commit of a branch that has none yet (git's null oid); its tree is the empty one."""


def commit_name(oid: Oid) -> str | None:
    """In hex; None for `NO_COMMIT`."""
    return None if oid == NO_COMMIT else oid.hex()


def unborn_tip(ref: str | None) -> Tip:
    """What is mounted of a branch without commits: an empty tree, made now."""
    return Tip(NO_COMMIT, EMPTY_TREE, ref, int(time.time()))


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a user's ref means at the remote: `want` is a commit, or the tag object of one.

    Of a branch without commits both are `NO_COMMIT`.
    """

    ref: str | None
    want: Oid
    commit: Oid

    @property
    def unborn(self) -> bool:
        return self.commit == NO_COMMIT


def tip_wish(settings: RepoSettings) -> TipWish | None:
    """What `clone_tip` will fetch, if that can be told before the refs of the remote are known."""
    ref = settings.ref or "HEAD"
    if ref != "HEAD" and not ref.startswith("refs/heads/"):
        return None
    return TipWish(ref, BLOBLESS, _depth_at_once(settings))


def _depth_at_once(settings: RepoSettings) -> int:
    depth = settings.depth
    return 1 if depth is None or depth > MAX_DEPTH_AT_ONCE else depth


async def clone_tip(
    layout: RepoLayout,
    settings: RepoSettings,
    remote: Remote,
    *,
    shared_objects: Path,
    arriving: trio.Nursery | None = None,
) -> Tip:
    """Phase 1: make ``layout.gitdir`` with everything that a mount of `settings.ref` needs.

    Where there is `arriving`, trees that take long go on to come in it, and are left to
    `fetch_trees`: `trees_to_come` says so.

    `shared_objects` is the object directory with hydrated blobs; it is made if need be. Takes one
    round trip where `remote` did not ask for the `tip_wish`, and one more where it was not opened
    with ``expect_refs``. Cancelled or
    failed, it leaves nothing behind.
    Raises: RemoteError (RemoteNotFound for a ref that is not there), InvalidInput, StateError.
    """
    advertised = with_head(await _advertised(remote, settings.ref), await default_branch())
    found = resolve(advertised, settings.ref)
    (shared_objects / "pack").mkdir(parents=True, exist_ok=True)
    alternates = (shared_objects, remote.alternate)
    new = await new_repository(settings.mount_point)
    plan = _plan(
        *(layout, settings, advertised, found, alternates),
        remote_name=await default_remote_name(),
        reached_url=remote.name,
        new=new,
    )
    layout.directory.mkdir(parents=True, exist_ok=True)
    for left_by_a_crash in layout.directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left_by_a_crash, ignore_errors=True)
    temporary = layout.directory / f"{_TEMPORARY}{secrets.token_hex(4)}"
    try:
        await trio.to_thread.run_sync(write_gitdir, temporary, plan)
        if remote.alternate is None and not found.unborn:
            cut = settings.depth is None and await _is_shallow(remote)
            depth = None if cut else _depth_at_once(settings)
            fetch = partial(_fetch_tip, remote, temporary, found, depth)
            if cut or settings.depth is not None:
                write_shallow(temporary, await _beside(temporary, fetch))
            elif arriving is None or await fsck_arguments(None):  # a fault anywhere is refused
                await _beside(temporary, fetch)
            else:
                root_first = partial(_fetch_root_first, remote, temporary, found, arriving)
                await _beside(temporary, root_first)
        tip = await trio.to_thread.run_sync(_read_tip, temporary, found)
        _check_required(settings, tip)
        if found.commit != tip.commit:
            raise CorruptData(f"{found.commit.hex()} is not the commit that was announced")
        await trio.to_thread.run_sync(sync_gitdir, temporary)
        publish(temporary, layout.gitdir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tip


async def _is_shallow(remote: Remote) -> bool:
    """Whether it lacks parents, as far as can be told before they are asked for: git has to know
    which. Raises: InvalidInput where ``clone.rejectShallow`` is set, RemoteError."""
    with deadline(_LOCAL_DEADLINE_S, remote.name):
        look = partial(is_shallow, parse_remote(remote.name))
        shallow = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    if not shallow:
        return False
    rejected = (await read_configuration()).last("clone.rejectshallow")
    if rejected is not None and as_bool(rejected):
        raise InvalidInput(
            f"{remote.name} is a shallow repository", hint="unset clone.rejectShallow to mount it"
        )
    return True


async def _advertised(remote: Remote, ref: str | None) -> RefAdvertisement:
    """The refs for a clone, and `ref` where it is a full name beyond branches and tags."""
    refs = await remote.ls_refs(CLONE_PREFIXES)
    if ref and ref.startswith("refs/") and ref not in refs.refs:
        more = await remote.ls_refs((ref,))
        refs = replace(refs, refs=refs.refs | more.refs, peeled=refs.peeled | more.peeled)
    return refs


def with_head(advertised: RefAdvertisement, default: str) -> RefAdvertisement:
    """`advertised` with the branch that `git clone` checks out where the server names none.

    HEAD may be detached there: then it is a branch that is at the same commit. Or it leads to no
    branch: then it is the one that HEAD names, or else `default`, there or unborn. Where the server
    hides the branch, HEAD is to be detached. Names that are none are passed over.
    """
    head = advertised.refs.get("HEAD")
    if advertised.head is not None and not valid_ref(advertised.head):
        advertised = replace(advertised, head=None)
    if advertised.head is not None and advertised.head.startswith("refs/heads/"):
        hidden = head is not None and advertised.head not in advertised.refs
        return replace(advertised, head=None) if hidden else advertised
    usual = [f"refs/heads/{default}", "refs/heads/master"]
    if head is None:
        return replace(advertised, head=usual[0])
    if advertised.head is not None:
        return replace(advertised, head=None)
    others = (n for n in advertised.refs if n.startswith("refs/heads/") and valid_ref(n))
    for name in (*usual, *others):
        if advertised.refs.get(name) == head:
            return replace(advertised, head=name)
    return replace(advertised, head=None)


def resolve(advertised: RefAdvertisement, ref: str | None) -> Resolved:
    """What `ref` (branch, tag, full name or commit oid; None: HEAD) means at the remote.

    Without commits on the default branch it is unborn. Raises: RemoteNotFound, naming the branches
    where they are few.
    """
    if ref is None or ref == "HEAD":
        name = advertised.head
        oid = advertised.refs.get("HEAD") or advertised.refs.get(name or "")
        if oid is None:
            return Resolved(name, NO_COMMIT, NO_COMMIT)
        return Resolved(name, oid, oid)
    for name in (ref, f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/{ref}"):
        if name.startswith("refs/heads/") and not valid_ref(name):
            continue
        if name.startswith("refs/") and (oid := advertised.refs.get(name)) is not None:
            return Resolved(name, oid, advertised.peeled.get(name, oid))
    if _OID.fullmatch(ref):
        return Resolved(None, bytes.fromhex(ref), bytes.fromhex(ref))
    hint = None if _SHORT_OID.fullmatch(ref) else _names(advertised)
    raise RemoteNotFound(
        f"the remote has no branch, tag or ref {ref!r}",
        hint=hint or "a commit is named by all 40 digits of its oid",
    )


def _names(advertised: RefAdvertisement) -> str | None:
    """The branches and tags that could have been meant, where they are few."""
    kinds = []
    for kind, plural, prefix in (("branch", "es", "refs/heads/"), ("tag", "s", "refs/tags/")):
        names = sorted(n.removeprefix(prefix) for n in advertised.refs if n.startswith(prefix))
        if 0 < len(names) <= _NAMED:
            kinds.append(f"the {kind}{plural if names[1:] else ''} {', '.join(names)}")
    return f"it has {' and '.join(kinds)}" if kinds else None


def _plan(
    layout: RepoLayout,
    settings: RepoSettings,
    advertised: RefAdvertisement,
    found: Resolved,
    alternates: tuple[Path | None, ...],
    *,
    remote_name: str,
    reached_url: str,
    new: NewRepository,
) -> GitdirPlan:
    """The refs of a clone: every branch and tag; with a depth only the one that is mounted."""
    branch = found.ref if found.ref and found.ref.startswith("refs/heads/") else None
    whole = default_remote(settings.remote, remote_name)
    fetch: str | None = default_refspec(remote_name)
    tracked = whole
    if settings.depth is not None:
        local = next(iter(whole.local_names(found.ref)), None) if found.ref else None
        fetch = f"+{found.ref}:{local}" if local else None
        tracked = replace(whole, refspecs=(parse_refspec(fetch),) if fetch else (), tags=False)
    refs, peeled = tracked_refs(advertised, tracked)
    if branch and not found.unborn:
        refs[branch] = found.commit
    remote_head = whole.tracking(advertised.head) if advertised.head else None
    return GitdirPlan(
        remote=remote_name,
        url=_without_userinfo(settings.remote),
        reached_url=reached_url,
        worktree=settings.mount_point,
        head=branch or found.commit,
        remote_head=remote_head if remote_head in refs else None,
        refs=refs,
        peeled=peeled,
        fetch=fetch,
        alternates=tuple(path for path in alternates if path is not None),
        credentials=layout.credentials,
        template=new.template,
        committer=new.committer,
        logs_refs=new.logs_refs,
        rebases=new.rebases,
    )


def _without_userinfo(url: str) -> str:
    """`url` may be one that only ``insteadOf`` makes a remote of."""
    try:
        return parse_remote(url).url
    except InvalidInput:
        return url


async def _beside(gitdir: Path, fetch: Callable[[], Awaitable[T]]) -> T:
    """As `fetch`. Meanwhile what else a mount would wait for is made: the object directory of
    our own processes, whose 258 links take as long as a round trip, and `keep_protection`."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, make_apart, gitdir)
            nursery.start_soon(keep_protection, gitdir)
            return await fetch()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _fetch_tip(
    remote: Remote, gitdir: Path, found: Resolved, depth: int | None
) -> frozenset[Oid]:
    """Commit and trees of the tip; returns the commits whose parents were left out."""
    checks = () if is_copied(remote) else await fsck_arguments(None)
    try:
        async with (
            index_pack(gitdir, checks=checks) as sink,
            remote.fetch_pack([found.want], filter=BLOBLESS, depth=depth) as pack,
        ):
            most = most_of_commit(remote) if depth is not None else MAX_HISTORY
            await feed_pack(pack, sink, gitdir, most=most)
            return pack.shallow
    except ObjectsMissing as error:
        raise RemoteNotFound(
            f"the remote has no commit {found.want.hex()}", hint="push it, or name a branch or tag"
        ) from error
    except GitFailed as error:
        raise CorruptData(f"the pack of the tip is not usable: {why_unusable(error)}") from error


async def _fetch_root_first(
    remote: Remote, gitdir: Path, found: Resolved, arriving: trio.Nursery
) -> None:
    """Fetch commit and trees, or the root tree alone of those that take long."""
    takes_long = await remote.is_slow(found.want, TipWish("", BLOBLESS, 1), arriving)
    if takes_long and await _fetch_root(remote, gitdir, found):
        mark_trees_to_come(gitdir, found.want)
    else:
        await _fetch_tip(remote, gitdir, found, 1)


async def _fetch_root(remote: Remote, gitdir: Path, found: Resolved) -> bool:
    """Fetch the commit and its root tree alone, while the whole tip is coming. False where that is
    here before, or the remote does not send them."""
    is_here = False

    async def give_up_when_all_is_here() -> None:
        await remote.until_here()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up_when_all_is_here)
        try:
            await fetch_commit(gitdir, remote, found.want, filter=ROOT_TREE)
            is_here = await trio.to_thread.run_sync(_has_root, gitdir, found)
        except (RemoteError, CorruptData) as error:
            log.debug("the root tree does not come alone: %s", error)
        nursery.cancel_scope.cancel()
    return is_here


def _has_root(gitdir: Path, found: Resolved) -> bool:
    odb = ObjectDatabase(gitdir)
    try:
        odb.tree(odb.commit(found.want).tree)
    except (MissingObject, CorruptData):
        return False
    return True


async def fetch_trees(gitdir: Path, remote: Remote) -> None:
    """Fetch the trees that `clone_tip` has left out, if it has; they come in one pack.

    Raises: RemoteError, CorruptData.
    """
    tip = trees_to_come(gitdir)
    if tip is not None:
        await fetch_commit(gitdir, remote, tip)
        mark_trees_here(gitdir)


def _read_tip(gitdir: Path, found: Resolved) -> Tip:
    if found.unborn:
        return unborn_tip(found.ref)
    try:
        commit = ObjectDatabase(gitdir).commit(found.commit)
    except (MissingObject, CorruptData) as error:
        name = found.ref or found.commit.hex()
        raise RemoteNotFound(
            f"{name} is not a commit", hint="name a branch, a tag or a commit"
        ) from error
    return Tip(commit.oid, commit.tree, found.ref, commit.commit_time)


def _check_required(settings: RepoSettings, tip: Tip) -> None:
    required = settings.require_commit
    if required is not None and required.lower() != tip.commit.hex():
        at = commit_name(tip.commit)
        where = f"is at {at}" if at is not None else "has no commits"
        raise InvalidInput(
            f"{settings.ref or 'HEAD'} {where}, not the required {required}",
            hint="mount that commit by --ref, or require the new one",
        )
