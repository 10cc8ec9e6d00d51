"""Fetches old versions of files when `git blame` or `git log -p` begins to ask for them.

In a partial clone git fetches them as it comes to them: for `blame` one at a time, for `log -p` and
`log --stat` those of one commit at a time, a process and a connection each. But first it looks
into the object directory that the mount offers (``fs/gitview/offered.py``), and waits for the
answer. Its command line tells which history it walks; so we fetch that in one batch, newest
versions first, and then answer that there is no such object: git looks for new packs, and finds it.

What is fetched grows with the number of times that git had to ask, or to begin a fetch (which looks
once more, too): who looks at the first page of ``git log -p`` needs little of it.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from artifactfs.daemon.background.checkouts import Checkouts
from artifactfs.errors import ArtifactFSError
from artifactfs.fs.gitview.callers import GitCommand
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.objects.history import blobs_of_history, blobs_of_recent_commits
from artifactfs.git.remote.arriving import ArrivingHistory
from artifactfs.git.repository.alternates import offer
from artifactfs.git.repository.refs import read_head
from artifactfs.hydration.hydrator import Hydrator

log = logging.getLogger(__name__)

_OF_A_FILE = ("blame", "annotate")
_OF_COMMITS = ("log", "whatchanged")

WAIT_S = 60.0
"""Git waits so long at most; then it fetches by itself, as it would without us."""
LIST_S = 30.0
DONE_S = 1.0
ALONE = 4
"""Versions that git fetches by itself before it waits for the history that tells all of them."""
FIRST_BLOBS = 1_000
"""Versions of files that come at first, some 2 MB; then four times as many, and so on."""
FIRST_COMMITS = 100
GROWTH = 4
MAX_COMMITS = 10_000
MAX_OF_COMMIT = 500
"""What a commit changed beyond that git fetches in one batch itself, at no loss."""
_READERS_KEPT = 32

_CONTENTS = re.compile(
    r"-[pucW]$|-[ULGS]|--(patch|unified|stat|numstat|shortstat|dirstat|cumulative|check|cc$|follow"
    r"|word-diff|color-words|remerge-diff|diff-merges|compact-summary|function-context|binary)"
)
"""Options for which ``git log`` reads files (git-log(1))."""
_COUNT = re.compile(r"(?:-n|-|--max-count=)(\d+)")


@dataclass(slots=True)
class _Reader:
    """One git command that walks through history, and what was fetched for it so far."""

    command: GitCommand
    paths: tuple[str, ...]
    commits: int
    """So many are looked at, where there are no paths."""
    lock: trio.Lock = field(default_factory=trio.Lock)
    versions: list[Oid] | None = None
    fetched: int = 0
    window: int = FIRST_BLOBS
    fetch: int = 0
    """The last fetch that it began."""
    done: bool = False


class OldVersions:
    """The git commands that walk through history in one mount."""

    COMMANDS = frozenset((*_OF_A_FILE, *_OF_COMMITS, "fetch"))
    """Those that `before_missing` can do something for."""

    def __init__(
        self,
        gitdir: Path,
        top: str,
        *,
        odb: ObjectDatabase,
        filesystem: FileSystem,
        hydrator: Hydrator,
        history: ArrivingHistory,
        checkouts: Checkouts,
    ) -> None:
        """`top` is the mount point."""
        self._checkouts = checkouts
        self._gitdir = gitdir
        self._top = top
        self._odb = odb
        self._filesystem = filesystem
        self._hydrator = hydrator
        self._history = history
        self._before_history: Counter[int] = Counter()
        self._readers: OrderedDict[int, _Reader] = OrderedDict()

    def offer_objects(self) -> None:
        """Let git see the blobs of the tree as objects that are here. Without it git works too."""
        features = self._filesystem.features
        if not features.on("offered-objects"):
            return
        line = self._filesystem.offered_alternate
        try:
            if line and self._filesystem.offered is not None:
                self._filesystem.offered.before_missing = self.before_missing
                self._filesystem.offered.told_of = self.COMMANDS
                offer(self._gitdir, line)
        except OSError as error:
            features.lacks("offered-objects", str(error))
            log.warning("git will not see the blobs of the tree: %s", error)

    async def before_missing(self, command: GitCommand, oid: Oid | None) -> None:
        """`command` looks for `oid`, or what there is: fetch what it will ask for.

        Waits for the network, up to `WAIT_S`; raises nothing.
        """
        if oid is not None and command.name in _OF_A_FILE and not self._history.done.is_set():
            await self._until_history_is_here(command.pid)
        reader = self._reader(command)
        if reader is None and command.name == "fetch" and oid is not None:
            await self._checkouts.before_fetch(command, oid)
        if reader is None or reader.done:
            return
        certain = oid is not None and not self._odb.contains(oid)
        if command.name == "fetch" and certain:
            certain = command.pid != reader.fetch
            reader.fetch = command.pid
        with trio.move_on_after(WAIT_S):
            try:
                async with reader.lock:
                    if not reader.done and (certain or reader.versions is None):
                        await self._fetch_more(reader)
                return
            except (ArtifactFSError, OSError) as error:
                log.info("old versions are left to git: %s", error)
        reader.done = True

    async def _until_history_is_here(self, pid: int) -> None:
        """A walk through many versions of a file needs all trees. Without them git would ask for
        each version by itself: 2,500 requests for one file of git's own repository. But the walk
        may end after a few."""
        self._before_history[pid] += 1
        if self._before_history[pid] <= ALONE:
            return
        await self._history.until_complete()
        with trio.move_on_after(DONE_S):  # where it has not failed
            await self._history.done.wait()

    def _reader(self, command: GitCommand) -> _Reader | None:
        """Which walk through history it is part of, if any, and if all commits are here."""
        if command.name == "fetch":
            return self._readers.get(command.parent())
        known = self._readers.get(command.pid)
        if known is not None and known.command == command:
            return known
        if command.name not in (*_OF_A_FILE, *_OF_COMMITS):
            return None
        if not self._history.done.is_set() or command.parent() == os.getpid():
            return None
        if command.name in _OF_COMMITS and not _reads_contents(command.arguments):
            return None
        reader = _Reader(command, self._paths(command), _count(command.arguments))
        reader.done = command.name in _OF_A_FILE and not reader.paths
        self._readers[command.pid] = reader
        if len(self._readers) > _READERS_KEPT:
            self._readers.popitem(last=False)
        return reader

    async def _fetch_more(self, reader: _Reader) -> None:
        first = reader.versions is None
        if reader.paths:
            if reader.versions is None:
                arguments = self._gitdir, reader.paths
                reader.versions = await blobs_of_history(*arguments, deadline_s=LIST_S)
            some = reader.versions[reader.fetched : reader.fetched + reader.window]
            reader.done = reader.fetched + reader.window >= len(reader.versions)
        else:
            reader.commits = min(reader.commits * (1 if first else GROWTH), MAX_COMMITS)
            some = reader.versions = await self._recent(reader.commits, GROWTH * reader.window)
            reader.done = reader.commits == MAX_COMMITS
        reader.fetched += len(some)
        reader.window *= GROWTH
        missing = self._odb.missing(some)
        if missing:
            log.info(
                "fetching old versions for git",
                extra={"command": reader.command.name, "blobs": len(missing)},
            )
            await self._hydrator.offered.fetch_all(missing)

    async def _recent(self, commits: int, limit: int) -> list[Oid]:
        head = read_head(self._gitdir).commit
        if head is None:
            return []
        return await blobs_of_recent_commits(
            self._odb, head, commits=commits, max_blobs=limit, max_of_commit=MAX_OF_COMMIT
        )

    def _paths(self, command: GitCommand) -> tuple[str, ...]:
        """The paths in its arguments, from the top of the tree."""
        directories = command.directories()
        given, sure = _given_paths(command)
        if command.name in _OF_A_FILE:
            given = given[-1:]
        found = [self._in_tree(path, directories, sure) for path in given]
        return tuple(path for path in found if path is not None)

    def _in_tree(self, path: str, directories: Sequence[str], sure: bool) -> str | None:
        """`path` from the top of the tree, if there is such a file, or it must mean one."""
        places = []
        for directory in directories:
            place = os.path.relpath(os.path.join(directory, path), self._top)
            if place != "." and not place.startswith("../"):
                places.append(place)
        for place in places:
            if self._filesystem.walker.find(os.fsencode(place)) is not None:
                return place
        return places[0] if sure and places else None


def _given_paths(command: GitCommand) -> tuple[list[str], bool]:
    """Arguments that may be paths, and whether they can be nothing else."""
    arguments = list(command.arguments)
    if "--" in arguments:
        return arguments[arguments.index("--") + 1 :], True
    ranges = [argument for argument in arguments if argument.startswith("-L")]
    paths = [argument.rpartition(":")[2] for argument in ranges if ":" in argument]
    return paths + [argument for argument in arguments if not argument.startswith("-")], False


def _reads_contents(arguments: Sequence[str]) -> bool:
    """Whether ``git log`` with these arguments reads files: not to list commits or names."""
    options = itertools.takewhile(lambda argument: argument != "--", arguments)
    return any(_CONTENTS.match(option) for option in options)


def _count(arguments: Sequence[str]) -> int:
    """How many commits are looked at; `FIRST_COMMITS` where it is not said."""
    for argument, value in zip(arguments, (*arguments[1:], ""), strict=True):
        found = _COUNT.fullmatch(argument)
        if found is not None or (argument == "-n" and value.isdecimal()):
            count = int(found[1] if found is not None else value)
            return min(max(count, 1), MAX_COMMITS)
    return FIRST_COMMITS
