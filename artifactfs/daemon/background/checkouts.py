"""Brings what ``git checkout`` is about to write, in one batch, over the connection that is open.

Git fetches the missing blobs of a checkout in one batch as well, but by a process and a connection
of its own, and it reads each of them again to be sure that it came. And of blobs that the mount
offers (``fs/gitview/offered.py``) it knows only when it opens one after the other: back in the
mounted tree that would be a request for every few files. We know them sooner: from the tree that it
waits for while history is on its way, and later from its command line, when it looks for its first
object. That look waits until they begin to come; then they are offered, too, and git begins no
fetch. Where it has begun one all the same, it finds them here, and fetches nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from artifactfs.errors import ArtifactFSError, DaemonError
from artifactfs.fs.gitview.callers import GitCommand, git_command
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.objects.raw_diff import DIFF_TREES, BlobChange, blob_changes
from artifactfs.hydration.hydrator import Hydrator

log = logging.getLogger(__name__)

RESOLVE_S = 5.0
_MOVING = ("checkout", "switch")
_NEW_BRANCH = ("-b", "-B", "-c", "-C", "--orphan")
_HARD = ("--hard", "--keep", "--merge")
_JOINING = ("merge", "rebase")
_JOINING_WITH_A_VALUE = ("-m", "-F", "-s", "-X", "-x", "--onto")
_PART_OF_A_CHECKOUT = "checkout--worker"
LOOKS_S = 10.0
"""So long after all has come it is shown: git looks for all of it before it reads any."""
_KNOWN = 32
"""Commands that are remembered."""


class Checkouts:
    """The commands that move the working tree of one mount to another commit."""

    def __init__(
        self,
        gitdir: Path,
        *,
        odb: ObjectDatabase,
        filesystem: FileSystem,
        hydrator: Hydrator,
        deadline_s: float,
        start: Callable[..., None],
    ) -> None:
        """Git waits for `deadline_s` from each blob to the next; then it is left alone.
        `start(job, *arguments)` has something done in the background. It raises DaemonError."""
        self._gitdir = gitdir
        self._odb = odb
        self._filesystem = filesystem
        self._hydrator = hydrator
        self._deadline_s = deadline_s
        self._start = start
        self._begun: OrderedDict[GitCommand, _Begun] = OrderedDict()

    def note(self, command: GitCommand) -> bool:
        """`command` looks for an object: begin to fetch what it is about to write. False where it
        writes no whole tree."""
        if command in self._begun:
            return True
        target = target_of(command)
        if target is None:
            return False
        begun = _Begun()
        with suppress(DaemonError):  # the mount is ending
            self._start(self._bring, command, target, begun)
            self._begun[command] = begun
        if len(self._begun) > _KNOWN:
            self._begun.popitem(last=False)
        return True

    async def _bring(self, command: GitCommand, target: str, begun: _Begun) -> None:
        try:
            base = "HEAD"
            if command.name == "merge":
                printed = await self._git("merge-base", "--end-of-options", "HEAD", target)
                base = printed.split()[0].decode("ascii")
            await self._fetch(await self._changes_to(base, target), None, begun)
        except GitFailed:
            pass  # it has another meaning in that folder: git does it all by itself
        finally:
            begun.shown.set()
            begun.ended.set()
            begun.first_bytes.cancel()

    def before_folder(self, command: GitCommand) -> trio.Event | None:
        """What `command` waits for before it looks which objects there are."""
        begun = self._begun.get(command)
        return None if begun is None else begun.shown

    async def before_read(self, command: GitCommand) -> None:
        """`command` reads a blob that is not here: wait for all that it is about to read.

        Waits for the network, as long as blobs come; raises nothing.
        """
        if command.name == _PART_OF_A_CHECKOUT:
            command = git_command(command.parent()) or command
        begun = self._begun.get(command)
        if begun is not None:
            await begun.ended.wait()

    async def before_tree(self, command: GitCommand, tree: Oid) -> None:
        """`command` has waited for the root `tree`: fetch the blobs too, where it will write them.

        Waits for the network, as long as blobs come; raises nothing.
        """
        if command.name in _JOINING or target_of(command) is None:
            return
        with suppress(GitFailed):  # then git fetches it
            await self._fetch(await self._changes("HEAD", tree.hex()), None)

    async def before_fetch(self, fetch: GitCommand, oid: Oid) -> None:
        """Git fetches what it misses, `oid` among it: fetch that, where it is for a checkout.

        Waits for the network, as long as blobs come; raises nothing.
        """
        command = git_command(fetch.parent())
        if command is None:
            return
        await self.before_read(command)
        target = target_of(command)
        if target is None or self._odb.contains(oid):
            return
        mounted = self._filesystem.base.tree.hex()
        with suppress(GitFailed):  # it has another meaning in that folder
            await self._fetch(await self._changes_to(mounted, target), oid)

    async def _changes_to(self, base: str, target: str) -> list[BlobChange]:
        """To a commit, or to the one branch of a remote that has such a name, of which `git switch`
        makes a branch. Raises: GitFailed where git knows none, or it is not here."""
        try:
            return await self._changes(base, "@{-1}" if target == "-" else target)
        except GitFailed:
            pattern = f"refs/remotes/*/{target}"
            printed = await self._git("for-each-ref", "--format=%(objectname)", pattern)
            if len(printed.split()) != 1:
                raise
            return await self._changes(base, printed.decode("ascii").strip())

    async def _changes(self, base: str, target: str) -> list[BlobChange]:
        """Of the files from one tree to the other, as git names them. Raises: GitFailed."""
        trees = (f"{base}^{{tree}}", f"{target}^{{tree}}")
        return blob_changes(await self._git(*DIFF_TREES, "--end-of-options", *trees))

    async def _git(self, *arguments: str) -> bytes:
        return await run_git(*arguments, gitdir=self._gitdir, deadline_s=RESOLVE_S)

    async def _fetch(
        self, changes: list[BlobChange], wanted: Oid | None, begun: _Begun | None = None
    ) -> None:
        """What comes with `changes` and is not here; nothing where `wanted` is not in it, but
        somewhere else. As soon as it begins to come it is shown to git, where that is `begun`."""
        with trio.move_on_after(self._deadline_s) as waiting:

            def note(_done: int, _wanted: int) -> None:
                waiting.deadline = trio.current_time() + self._deadline_s

            try:
                missing = await self._missing(change.after for change in changes)
                if not missing or wanted not in (None, *missing):
                    return
                log.info("fetching a checkout for git", extra={"blobs": len(missing)})
                if not self._hydrator.sizes_are_told:
                    # Git looks at each file that it replaces, and would wait for its size.
                    missing += await self._missing(change.before for change in changes)
                if begun is not None:
                    with suppress(DaemonError):  # the mount is ending
                        self._start(self._show, missing, begun)
                await self._hydrator.offered.fetch_all(missing, progress=note)
                if begun is not None:
                    begun.fetched = True
            except (ArtifactFSError, OSError) as error:
                log.info("a checkout is left to git: %s", error)

    async def _show(self, oids: list[Oid], begun: _Begun) -> None:
        """Let git see `oids` from their first bytes on, until it has looked; where they do not come
        after all, until that is known."""
        offered, asked = self._filesystem.offered, trio.current_time()
        ordered = await trio.to_thread.run_sync(sorted, oids)
        with begun.first_bytes:
            await self._hydrator.offered.first_bytes(oids[0], since=asked)
        if begun.ended.is_set() or offered is None:
            return
        offered.offer_also(ordered)
        begun.shown.set()
        try:
            await begun.ended.wait()
            if begun.fetched:
                await trio.sleep(LOOKS_S)
        finally:
            offered.withdraw(ordered)

    async def _missing(self, oids: Iterable[Oid | None]) -> list[Oid]:
        some = dict.fromkeys(oid for oid in oids if oid is not None)
        return await trio.to_thread.run_sync(self._odb.missing, some)


@dataclass(slots=True)
class _Begun:
    """What was begun for a command. `shown`: it may look which objects there are. `ended`: all of
    them were `fetched`, or the rest is left to git."""

    shown: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    first_bytes: trio.CancelScope = field(default_factory=trio.CancelScope)
    fetched: bool = False


def target_of(command: GitCommand) -> str | None:
    """The commit whose whole tree `command` writes, or which it joins with HEAD; None where there
    is none, or it writes parts of one."""
    if command.name not in (*_MOVING, *_JOINING, "reset"):
        return None
    words: list[str] = []
    given = command.arguments[:-1] if command.arguments[-1:] == ("--",) else command.arguments
    arguments = iter(given)
    options = []
    for argument in arguments:
        if argument == "--":
            return None  # paths
        if (argument in _NEW_BRANCH and command.name in _MOVING) or (
            argument in _JOINING_WITH_A_VALUE and command.name in _JOINING
        ):
            next(arguments, None)
        elif argument.startswith("-") and argument != "-":
            options.append(argument)
        else:
            words.append(argument)
    if command.name == "reset" and not any(option in _HARD for option in options):
        return None
    return words[0] if len(words) == 1 else None
