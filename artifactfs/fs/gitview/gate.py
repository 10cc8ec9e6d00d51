"""Has programs wait for history that is on its way, where they would take it for missing.

Git looks into its packs first, then for a loose object, in the directory that the mount offers
(see `offered`) among others, and then once more for new packs. Only after that it fetches the
object, or reports it as missing: from 2.40 on it never fetches a commit. So the look-up of a commit
or tree that is on its way waits until it is here, and is then answered that there is no such file:
git finds it in the new pack. libgit2 looks in the same order.

What needs no history must not wait. Git looks for an object by the same system calls before it
writes one. So a look-up waits only for an oid that something here or the command itself names. Of
a command that never writes, each look-up waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from artifactfs.fs.gitview.callers import GitCommand, is_own
from artifactfs.fs.kernel.interrupt import unless_interrupted
from artifactfs.git.objects.database import Oid

AfterTree = Callable[[GitCommand, Oid], Awaitable[None]]

_NEVER_WAIT = frozenset(
    """
    count-objects index-pack multi-pack-index pack-refs prune-packed receive-pack unpack-objects
    verify-pack
    """.split()  # noqa: SIM905 - as in `offered`
)
"""They work on what is here, and look at no ref."""

_NEVER_WRITE = frozenset(
    """
    blame branch cat-file describe diff diff-tree for-each-ref grep log ls-tree merge-base name-rev
    rev-list rev-parse shortlog show show-branch whatchanged
    """.split()  # noqa: SIM905
)
"""What these look for is meant to be there, whoever named it: by standard input, say."""

_FEW_TREES = frozenset(
    """
    archive checkout diff difftool ls-tree merge-tree read-tree reset restore show switch worktree
    """.split()  # noqa: SIM905
)
"""What need the trees of a commit or two: these are fetched before their turn, at once."""

LAZY_FETCH = "--no-write-fetch-head"
"""An argument of the fetch that git starts for an object that it misses."""


class History(Protocol):
    """See `artifactfs.git.remote.arriving.ArrivingHistory`."""

    @property
    def on_its_way(self) -> bool: ...
    def note_fetch(self) -> None: ...
    async def names(self, oid: Oid, *, tree: bool = False) -> bool: ...
    def is_root(self, oid: Oid) -> bool: ...
    async def until_here(self, oid: Oid, *, alone: bool = False) -> None: ...
    async def until_resolvable(self, abbreviation: str) -> None: ...


class HistoryGate:
    """Where the programs of one mount wait for its history."""

    def __init__(self, history: History, after_tree: AfterTree | None = None) -> None:
        """`after_tree` is awaited when the tree of a commit is here that a command waited for."""
        self._history = history
        self._after_tree = after_tree

    def concerns(self, command: GitCommand | None) -> bool:
        """Whether look-ups of `command`, or of a program that is not git, may have to wait."""
        if not self._history.on_its_way:
            return False
        if command is None:
            return True
        if LAZY_FETCH in command.arguments:
            self._history.note_fetch()
            return False
        return command.name not in _NEVER_WAIT

    async def before_object(self, command: GitCommand | None, oid: Oid, pid: int) -> None:
        """Wait until `oid` is here, if it is on its way; `pid` can be killed meanwhile.

        Raises: InterruptedError.
        """
        sure = command is not None and (command.name in _NEVER_WRITE or command.is_given(oid.hex()))
        few = command is not None and command.name in _FEW_TREES
        if (sure or await self._history.names(oid, tree=few)) and not is_own(pid):
            await unless_interrupted(pid, partial(self._history.until_here, oid, alone=few))
            if few and command is not None and self._after_tree and self._history.is_root(oid):
                await unless_interrupted(pid, partial(self._after_tree, command, oid))

    def may_wait_in_folders(self, command: GitCommand) -> bool:
        """Whether `before_folder` may wait for `command`."""
        return self.concerns(command) and bool(command.abbreviations(""))

    async def before_folder(self, command: GitCommand | None, digits: str, pid: int) -> None:
        """Git lists the objects that begin with `digits`: wait where it may do so to find out what
        an abbreviation means. Raises: InterruptedError."""
        abbreviations = command.abbreviations(digits) if command is not None else []
        if not abbreviations or is_own(pid):
            return
        for abbreviation in abbreviations:
            wait = partial(self._history.until_resolvable, abbreviation)
            await unless_interrupted(pid, wait)
