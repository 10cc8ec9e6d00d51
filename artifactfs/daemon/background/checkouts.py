"""Brings what ``git checkout`` is about to write, in one batch, over the connection that is open.

Git fetches the missing blobs of a checkout in one batch as well, but by a process and a connection
of its own, and it reads each of them again to be sure that it came. And of blobs that the mount
offers (``fs/gitview/offered.py``) it knows only when it opens one after the other: back in the
mounted tree that would be a request for every few files. We know them sooner: from the tree that it
waits for while history is on its way, and later from its command line, when it looks for its first
object. When its fetch looks whether the objects are here, it finds them and fetches nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from artifactfs.errors import ArtifactFSError, DaemonError
from artifactfs.fs.gitview.callers import GitCommand, git_command
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.objects.database import MissingObject, ObjectDatabase, Oid
from artifactfs.git.objects.tree_diff import diff_trees
from artifactfs.git.repository.refs import read_head
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.hydration.order.nearby import is_gitlink

log = logging.getLogger(__name__)

RESOLVE_S = 5.0
_MOVING = ("checkout", "switch")
_NEW_BRANCH = ("-b", "-B", "-c", "-C", "--orphan")
_HARD = ("--hard", "--keep", "--merge")
_JOINING = ("merge", "rebase")
_JOINING_WITH_A_VALUE = ("-m", "-F", "-s", "-X", "-x", "--onto")
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
        self._begun: OrderedDict[GitCommand, trio.Event] = OrderedDict()
        """What was begun for a command, and whether it has ended."""

    def note(self, command: GitCommand) -> None:
        """`command` looks for an object: begin to fetch what it is about to write."""
        if command in self._begun:
            return
        target = target_of(command)
        if target is None:
            return
        ended = trio.Event()
        with suppress(DaemonError):  # the mount is ending
            self._start(self._bring, command, target, ended)
            self._begun[command] = ended
        if len(self._begun) > _KNOWN:
            self._begun.popitem(last=False)

    async def _bring(self, command: GitCommand, target: str, ended: trio.Event) -> None:
        try:
            tree = await self._tree_of(target)
            if command.name == "merge":
                run = partial(run_git, gitdir=self._gitdir, deadline_s=RESOLVE_S)
                printed = await run("merge-base", "--end-of-options", "HEAD", target)
                base = await self._tree_of(printed.decode("ascii").split()[0])
            else:
                base = self._tree_of_head()
            await self._fetch(base, tree, None)
        except (GitFailed, LookupError, ValueError):
            pass  # it has another meaning in that folder: git does it all by itself
        finally:
            ended.set()

    async def before_read(self, command: GitCommand) -> None:
        """`command` reads a blob that is not here: wait for all that it is about to read.

        Waits for the network, as long as blobs come; raises nothing.
        """
        ended = self._begun.get(command)
        if ended is not None:
            await ended.wait()

    async def before_tree(self, command: GitCommand, tree: Oid) -> None:
        """`command` has waited for the root `tree`: fetch the blobs too, where it will write them.

        Waits for the network, as long as blobs come; raises nothing.
        """
        if command.name not in _JOINING and target_of(command) is not None:
            await self._fetch(self._tree_of_head(), tree, None)

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
        try:
            tree = await self._tree_of(target)
        except (GitFailed, ValueError):
            return  # it has another meaning in that folder: git fetches it
        await self._fetch(self._filesystem.base.tree, tree, oid)

    def _tree_of_head(self) -> Oid:
        """What git takes the working tree for; what is mounted, where that cannot be told."""
        try:
            commit = read_head(self._gitdir).commit
            if commit is not None:
                return self._odb.commit(commit).tree
        except (ArtifactFSError, MissingObject, OSError) as error:
            log.debug("HEAD is taken for what is mounted: %s", error)
        return self._filesystem.base.tree

    async def _tree_of(self, target: str) -> Oid:
        """The tree of a commit, or of the one branch of a remote that has such a name, of which
        `git switch` makes a branch. Raises: GitFailed, ValueError where there is none."""
        run = partial(run_git, gitdir=self._gitdir, deadline_s=RESOLVE_S)
        target = "@{-1}" if target == "-" else target
        try:
            name = f"{target}^{{tree}}"
            printed = await run("rev-parse", "--verify", "--quiet", "--end-of-options", name)
        except GitFailed:
            pattern = f"refs/remotes/*/{target}"
            printed = await run("for-each-ref", "--format=%(tree)", "--count=2", pattern)
        (tree,) = printed.decode("ascii").split()
        return bytes.fromhex(tree)

    async def _fetch(self, base: Oid, tree: Oid, wanted: Oid | None) -> None:
        """What `tree` has and `base` has not, and is not here; nothing where `wanted` is not in it,
        but somewhere else."""
        with trio.move_on_after(self._deadline_s) as waiting:

            def note(_done: int, _wanted: int) -> None:
                waiting.deadline = trio.current_time() + self._deadline_s

            try:
                missing = await trio.to_thread.run_sync(_missing, self._odb, base, tree)
                if not missing or wanted not in (None, *missing):
                    return
                log.info("fetching a checkout for git", extra={"blobs": len(missing)})
                if not self._hydrator.sizes_are_told:
                    # Git looks at each file that it replaces, and would wait for its size.
                    missing += await trio.to_thread.run_sync(_missing, self._odb, tree, base)
                await self._hydrator.offered.fetch_all(missing, progress=note)
            except (ArtifactFSError, MissingObject, OSError) as error:
                log.info("a checkout is left to git: %s", error)


def _missing(odb: ObjectDatabase, base: Oid, tree: Oid) -> list[Oid]:
    """Blobs of `tree` that are neither here nor at the same path of `base`."""
    changes = diff_trees(odb, base, tree)
    after = [change.after for change in changes if change.after is not None]
    return odb.missing(dict.fromkeys(entry.oid for entry in after if not is_gitlink(entry.mode)))


def target_of(command: GitCommand) -> str | None:
    """The commit whose whole tree `command` writes, or which it joins with HEAD; None where there
    is none, or it writes parts of one."""
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
    if command.name not in (*_MOVING, *_JOINING, "reset") or len(words) != 1:
        return None
    return words[0]
