"""Brings what ``git checkout`` is about to write, in one batch, over the connection that is open.

Git fetches the missing blobs of a checkout in one batch as well, but by a process and a connection
of its own, and it reads each of them again to be sure that it came. We know them sooner: from the
tree that it waits for while history is on its way, and later from its command line, when its fetch
looks whether the objects are here. Then it finds them and fetches nothing.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.fs.gitview.callers import GitCommand, git_command
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.objects.database import MissingObject, ObjectDatabase, Oid
from artifactfs.git.objects.tree_diff import diff_trees
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.hydration.order.nearby import is_gitlink

log = logging.getLogger(__name__)

WAIT_S = 600.0
"""Git waits so long at most; then it fetches by itself what is not here."""
RESOLVE_S = 5.0
_MOVING = ("checkout", "switch")
_NEW_BRANCH = ("-b", "-B", "-c", "-C", "--orphan")
_HARD = ("--hard", "--keep", "--merge")


class Checkouts:
    """The commands that move the working tree of one mount to another commit."""

    def __init__(
        self, gitdir: Path, *, odb: ObjectDatabase, filesystem: FileSystem, hydrator: Hydrator
    ) -> None:
        self._gitdir = gitdir
        self._odb = odb
        self._filesystem = filesystem
        self._hydrator = hydrator

    async def before_tree(self, command: GitCommand, tree: Oid) -> None:
        """`command` has waited for the root `tree`: fetch the blobs too, where it will write them.

        Waits for the network, up to `WAIT_S`; raises nothing.
        """
        if target_of(command) is not None:
            await self._fetch(tree, None)

    async def before_fetch(self, fetch: GitCommand, oid: Oid) -> None:
        """Git fetches what it misses, `oid` among it: fetch that, where it is for a checkout.

        Waits for the network, up to `WAIT_S`; raises nothing.
        """
        command = git_command(fetch.parent())
        target = target_of(command) if command is not None else None
        if target is None or self._odb.contains(oid):
            return
        try:
            tree = await self._tree_of(target)
        except (GitFailed, ValueError):
            return  # it has another meaning in that folder: git fetches it
        await self._fetch(tree, oid)

    async def _tree_of(self, target: str) -> Oid:
        """The tree of a commit, or of the one branch of a remote that has such a name, of which
        `git switch` makes a branch. Raises: GitFailed, ValueError where there is none."""
        run = partial(run_git, gitdir=self._gitdir, deadline_s=RESOLVE_S)
        try:
            name = f"{target}^{{tree}}"
            printed = await run("rev-parse", "--verify", "--quiet", "--end-of-options", name)
        except GitFailed:
            pattern = f"refs/remotes/*/{target}"
            printed = await run("for-each-ref", "--format=%(tree)", "--count=2", pattern)
        (tree,) = printed.decode("ascii").split()
        return bytes.fromhex(tree)

    async def _fetch(self, tree: Oid, wanted: Oid | None) -> None:
        with trio.move_on_after(WAIT_S):
            try:
                base = self._filesystem.base.tree
                missing = await trio.to_thread.run_sync(_missing, self._odb, base, tree)
                if not missing or wanted not in (None, *missing):
                    return
                log.info("fetching a checkout for git", extra={"blobs": len(missing)})
                if not self._hydrator.sizes_are_told:
                    # Git looks at each file that it replaces, and would wait for its size.
                    missing += await trio.to_thread.run_sync(_missing, self._odb, tree, base)
                await self._hydrator.offered.fetch_all(missing)
            except (ArtifactFSError, MissingObject, OSError) as error:
                log.info("a checkout is left to git: %s", error)


def _missing(odb: ObjectDatabase, base: Oid, tree: Oid) -> list[Oid]:
    """Blobs of `tree` that are neither here nor at the same path of `base`."""
    changes = diff_trees(odb, base, tree)
    after = [change.after for change in changes if change.after is not None]
    return odb.missing(dict.fromkeys(entry.oid for entry in after if not is_gitlink(entry.mode)))


def target_of(command: GitCommand) -> str | None:
    """The commit whose whole tree `command` writes; None where it writes none, or parts of one."""
    words: list[str] = []
    arguments = iter(command.arguments)
    options = []
    for argument in arguments:
        if argument == "--":
            return None  # paths
        if argument in _NEW_BRANCH and command.name in _MOVING:
            next(arguments, None)
        elif argument.startswith("-") and argument != "-":
            options.append(argument)
        else:
            words.append(argument)
    if command.name == "reset" and not any(option in _HARD for option in options):
        return None
    if command.name not in (*_MOVING, "reset") or len(words) != 1:
        return None
    return words[0]
