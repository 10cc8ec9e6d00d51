"""Files of the mount that are in no tree: ``.git``, and the directory that git's fsmonitor reads.

``.git`` is a gitfile (gitrepository-layout) like that of a linked worktree. Its content, but
nothing else, waits until the index is there. Where the worker can cover it with a bind mount of the
gitdir (`GitdirPlace`) it is a folder, as in a clone. That is done when there is an index. Whoever
looks for something in it before is told ESTALE: the kernel walks the whole path once more, and asks
whether ``.git`` is still what it was. There it waits, until it is covered, and then finds the
gitdir. (It cannot wait in ``.git`` itself, nor where it looks for ``.git`` for the first time: such
a look-up holds the lock on a folder that mount(2) needs.)

Where the kernel's overlayfs is above our mount, the gitdir is covered at once, and another bind
mount covers that one: ``.artifact-fs/waiting``. Whoever looks for something in it waits until it is
gone, and is then told ESTALE.

``.artifact-fs/fsmonitor/TOKEN`` is the answer to "what changed since TOKEN", made when the name is
looked up: a file contains its answer for ever, so a look-up finds another file where the answer is
another one. The directory is not listed; where the tree has that name another one is used.
"""

from __future__ import annotations

import errno
import secrets
import stat
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from dataclasses import dataclass

import pyfuse3
import trio

from artifactfs.fs.gitview.offered import OFFERED_INO, OfferedObjects
from artifactfs.fs.inodes.attributes import FOREVER
from artifactfs.fs.kernel.interrupt import unless_interrupted
from artifactfs.fs.kernel.refusal import fail
from artifactfs.inode_numbers import ROOT_INO

GITFILE = b".git"
GITFILE_INO = 2
_CONTROL_INO = 3
_FSMONITOR_INO = 4
_GITDIR_INO = 6
_WAITING_INO = 7
WAITING = b"waiting"
_TOKENS = 1 << 61
"""Numbers of token files: apart from derived (bit 62) and allocated ones (small)."""

_ANSWERS_KEPT = 64
"""The kernel may remember a token file for ever, though its reader came and went."""

_MAX_TOKEN = 200

_FORGET_S = 5.0
"""The kernel is given so long to forget a name: it may wait for a look-up that we answer."""


class GitdirPlace:
    """Whether ``.git`` is a folder that the gitdir covers, and whether git may look into it."""

    def __init__(self, *, can_be_covered: bool) -> None:
        self.is_folder = can_be_covered
        self.has_waiting_room = False
        self._ready = trio.Event()

    def ready(self) -> None:
        """What covers ``.git`` is the gitdir, for good."""
        self._ready.set()

    async def give_up(self) -> None:
        """It cannot be covered: the kernel is told to forget the folder, and finds a gitfile."""
        self.is_folder = False
        self._ready.set()
        with trio.move_on_after(_FORGET_S):
            await trio.to_thread.run_sync(_forget_gitdir, abandon_on_cancel=True)

    async def wait(self, pid: int) -> None:
        """Until it is ready, or a gitfile; the caller `pid` can be killed."""
        await unless_interrupted(pid, self._ready.wait)


def _forget_gitdir() -> None:
    with suppress(FileNotFoundError):  # the kernel does not know it
        pyfuse3.invalidate_entry(ROOT_INO, GITFILE)


def free_name(names: Container[bytes]) -> bytes:
    """The name of the control directory: one that is not among `names`, those of the top."""
    name, number = b".artifact-fs", 1
    while name in names:
        number += 1
        name = b".artifact-fs-%d" % number
    return name


@dataclass(slots=True)
class _Answer:
    """A token file. `references` are the kernel's."""

    token: str
    content: bytes
    references: int = 0


class VirtualFiles:
    """The inodes below `FIRST_ALLOCATED_INO`, and the token files."""

    def __init__(
        self,
        gitdir: bytes,
        answer: Callable[[str], bytes],
        *,
        offered: OfferedObjects | None = None,
        place: GitdirPlace | None = None,
        uid: int,
        gid: int,
        time_ns: int,
    ) -> None:
        self.offered = offered
        self.place = place or GitdirPlace(can_be_covered=False)
        self.gitfile = b"gitdir: " + gitdir + b"\n"
        self.control_name = b".artifact-fs"
        self._answer = answer
        self.before_answer: Callable[[], Awaitable[None]] | None = None
        """Awaited before an answer is made, where that takes a look at the disk."""
        self._uid = uid
        self._gid = gid
        self._time_ns = time_ns
        self._answers: dict[int, _Answer] = {}
        self._last_answers: dict[str, int] = {}
        """Of each token the number of the last file, while it is in `_answers`."""
        self._turned_away: set[int] = set()
        """Processes that looked into ``.git`` before anything covered it."""
        # Not what a process before has used: the kernel may know it, and keep its content.
        self._next = _TOKENS + secrets.randbelow(_TOKENS // 2)

    def avoid(self, names: Container[bytes]) -> None:
        """Choose a name for the directory that the root of the tree does not have."""
        self.control_name = free_name(names)

    def owns(self, ino: int) -> bool:
        if GITFILE_INO <= ino <= _WAITING_INO or _TOKENS <= ino < 2 * _TOKENS:
            return True
        return self.offers(ino)

    def offers(self, ino: int) -> bool:
        """Whether `ino` belongs to the object directory that git is shown."""
        return self.offered is not None and self.offered.owns(ino)

    def reserves(self, parent: int, name: bytes) -> bool:
        """Whether nothing may be made, moved or removed under that name."""
        if parent == ROOT_INO:
            return name in (GITFILE, self.control_name)
        return self.owns(parent)

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The number of a virtual name. It counts as one reference of the kernel."""
        if parent == ROOT_INO:
            if name == GITFILE:
                return self.git_ino
            return _CONTROL_INO if name == self.control_name else None
        if parent == _CONTROL_INO:
            if name == b"objects" and self.offered is not None:
                return OFFERED_INO
            if name == WAITING:
                return _WAITING_INO
            return _FSMONITOR_INO if name == b"fsmonitor" else None
        if parent == _FSMONITOR_INO and len(name) <= _MAX_TOKEN:
            return self._token(name.decode("utf-8", "replace"))
        return None

    @property
    def git_ino(self) -> int:
        """The number of ``.git``."""
        return _GITDIR_INO if self.place.is_folder else GITFILE_INO

    async def before_lookup(self, parent: int, name: bytes, pid: int) -> None:
        """Waits where something is looked for in a gitdir that is not there, or has no index, and
        for what an answer to git's fsmonitor needs."""
        if parent == _FSMONITOR_INO and self.before_answer is not None:
            await self.before_answer()
        if parent == _WAITING_INO:
            await self.place.wait(pid)
        if parent == ROOT_INO and name == GITFILE and pid in self._turned_away:
            await self.place.wait(pid)
            self._turned_away.clear()
        if parent == _GITDIR_INO and not self.place.has_waiting_room:
            self._turned_away.add(pid)
        if parent in (_WAITING_INO, _GITDIR_INO):
            fail(errno.ESTALE)

    def _token(self, token: str) -> int:
        # The kernel knows the file that a git before was given, and asks whether the name still is
        # that one: then it asks for nothing else.
        content = self._answer(token)
        ino = self._last_answers.get(token)
        if ino is None or self._answers[ino].content != content:
            ino, self._next = self._next, self._next + 1
            self._answers[ino] = _Answer(token, content)
            self._last_answers[token] = ino
            if len(self._answers) > _ANSWERS_KEPT:
                self._drop(next(iter(self._answers)))
        answer = self._answers[ino] = self._answers.pop(ino)  # the one that was used last
        answer.references += 1
        return ino

    def _drop(self, ino: int) -> None:
        token = self._answers.pop(ino).token
        if self._last_answers.get(token) == ino:
            del self._last_answers[token]

    def forget(self, ino: int, count: int) -> None:
        """The kernel lets go of `count` references to a virtual file."""
        answer = self._answers.get(ino)
        if answer is not None:
            answer.references -= count
            if answer.references <= 0:
                self._drop(ino)

    def attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        if self.offered is not None and self.offered.owns(ino):
            return self.offered.attributes(ino)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._time_ns
        if ino in (_GITDIR_INO, _WAITING_INO):
            entry.st_mode = stat.S_IFDIR | 0o755
            entry.st_nlink = 2
        elif ino in (_CONTROL_INO, _FSMONITOR_INO):
            entry.st_mode = stat.S_IFDIR | 0o555
            entry.st_nlink = 2
        else:
            entry.st_mode = stat.S_IFREG | 0o444
        entry.entry_timeout = entry.attr_timeout = FOREVER
        if ino == GITFILE_INO:
            entry.st_mode = stat.S_IFREG | 0o644
            entry.st_size = len(self.gitfile)
            entry.st_blocks = 1
        elif ino >= _TOKENS:
            entry.entry_timeout = 0
            entry.st_size = len(self._kept(ino))
            entry.st_blocks = (entry.st_size + 511) >> 9
        return entry

    def content(self, ino: int) -> bytes | None:
        """What a virtual file contains; None: the gitfile, which may have to wait."""
        if ino == GITFILE_INO:
            return None
        return self._kept(ino)

    def _kept(self, ino: int) -> bytes:
        answer = self._answers.get(ino)
        if answer is None:
            fail(errno.ESTALE)
        return answer.content
