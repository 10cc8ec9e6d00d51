"""What git's fsmonitor is answered where the kernel writes: from looks at the upper folder.

A look finds every path that differs from the base tree, and each answer names all of them. That is
not enough: a file that only the upper folder had leaves nothing behind when it is removed, and git
would keep it in its untracked cache, or take its index entry for unchanged. So a name that an
earlier look found and this one does not is still named, to every token from before this look. Git
may also have seen a file that came and went between two looks. It changed the mtime of its folder,
so the folder is named.

A folder that hides or replaces what was below (it is new, or was moved) is named as ``path/``, with
a path in it and in each folder below: see `artifactfs.fs.gitview.journal`. What is in it needs no
name of its own, so 50,000 files of a package tree are as many names as it has folders.

The state is written down before an answer is given, for the next process; after a boot everything
may have changed, since the disk may have forgotten what we noted.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from artifactfs.fs.gitview.journal import EVERYTHING, IN_DIRECTORY
from artifactfs.fs.inodes.listings import base_tree_of, is_directory_entry
from artifactfs.fs.inodes.seals import boot_id
from artifactfs.fs.native.marks import marks_of, redirected
from artifactfs.fs.native.view import View, join
from artifactfs.git.objects.database import Oid
from artifactfs.system.files import replace_file

MAX_NAMES = 100_000
"""Beyond, the answer is that everything may have changed: git stats everything, as without us."""

_GRANULARITY_NS = 20_000_000
"""Two changes so near to each other may have the same time: a tick is up to 10 ms."""

_YOUNG = -1


class TooMany(Exception):
    """More names than an answer may have."""


@dataclass(slots=True)
class Look:
    """What differs, and the mtime (ns) of each folder in which both layers show."""

    names: set[bytes] = field(default_factory=set)
    folders: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder of the upper one. `named`: with all that is in it, by whoever found it."""

    upper: bytes
    path: bytes
    lower: bytes | None
    tree: Oid | None
    named: bool


def look(view: View, limit: int = MAX_NAMES) -> Look:
    """Walk the upper folder. Raises: TooMany, OSError, MissingObject, CorruptData."""
    found, top = Look(), view.top
    assert top.upper is not None
    stack = [_Place(top.upper, b"", b"", top.tree, named=False)]
    while stack:
        place = stack.pop()
        if not place.named:
            found.folders[place.path] = os.stat(place.upper).st_mtime_ns
        stack.extend(_look_into(view, place, found))
        if len(found.names) > limit:
            raise TooMany
    return found


def _look_into(view: View, place: _Place, found: Look) -> Iterable[_Place]:
    below = view.entries(place.tree)
    prefix = place.path + b"/" if place.path else b""
    folders = []
    with os.scandir(place.upper) as written:
        for one in written:
            if one.is_dir(follow_symlinks=False):
                if place.path or one.name not in view.hidden:
                    folders.append((one.path, one.name))
            elif not place.named and (place.path or one.name not in view.hidden):
                name = prefix + one.name
                found.names.add(name)
                entry = below.get(one.name)
                if entry is not None and is_directory_entry(entry):
                    found.names.add(name + b"/")
    return [_folder(view, place, path, name, found) for path, name in folders]


def _folder(view: View, place: _Place, upper: bytes, name: bytes, found: Look) -> _Place:
    path = join(place.path, name)
    marks, entry = marks_of(upper), view.entries(place.tree).get(name)
    if marks.redirect is not None:
        lower = redirected(place.lower, marks.redirect)
        tree = view.tree_at(lower)
        _name_below(view, path, tree, found)
    elif marks.opaque or entry is None or not is_directory_entry(entry):
        lower = tree = None
    else:
        lower = join(place.lower or b"", name)
        tree = base_tree_of(entry)
        if not place.named:
            return _Place(upper, path, lower, tree, named=False)
        _name_below(view, path, tree, found)
    if not place.named:
        found.names.add(path + b"/")
        if entry is not None and not is_directory_entry(entry):
            found.names.add(path)
    found.names.add(path + IN_DIRECTORY)
    return _Place(upper, path, lower, tree, named=True)


def _name_below(view: View, path: bytes, tree: Oid | None, found: Look) -> None:
    """The folders of a base tree that shows at another place."""
    stack = [(path, tree)]
    while stack:
        path, tree = stack.pop()
        found.names.add(path + IN_DIRECTORY)
        if len(found.names) > MAX_NAMES:
            raise TooMany
        for name, entry in view.entries(tree).items():
            if is_directory_entry(entry):
                stack.append((path + b"/" + name, base_tree_of(entry)))


class UpperJournal:
    """The looks at one upper folder. `file` keeps them over restarts; `update` is for threads."""

    def __init__(self, file: Path, view: View) -> None:
        self._file = file
        self._view = view
        self._lock = threading.Lock()
        self.session = ""
        self.sequence = 0
        self._floor = 0
        self._saved = b""
        self._look = Look()
        self._gone: dict[bytes, int] = {}
        """Names of before → the number of the look that did not find them any more."""
        if not self._load():
            self._begin_session()

    def _begin_session(self) -> None:
        self.session = secrets.token_hex(8)
        self.sequence = self._floor = 0
        self._look, self._gone = Look(), {}

    @property
    def initial_token(self) -> str:
        """Of the time before anything was written."""
        return f"{self.session}.0"

    def update(self) -> None:
        """Look once more. Blocks. Raises: MissingObject, CorruptData."""
        with self._lock:
            try:
                self._take(self._look_again())
            except (TooMany, OSError):
                self._forget()
            try:
                self._save()
            except OSError:  # a full disk: no token of this session is good for another process
                self._begin_session()

    def _look_again(self) -> Look:
        started = time.time_ns()
        now = look(self._view)
        for path, mtime_ns in now.folders.items():
            if mtime_ns >= started - _GRANULARITY_NS:
                now.folders[path] = _YOUNG
        return now

    def _take(self, now: Look) -> None:
        before, self._look = self._look, now
        gone = before.names - now.names
        gone.update(
            _inside(path)
            for path in before.folders.keys() | now.folders.keys()
            if before.folders.get(path) != now.folders.get(path)
            or before.folders.get(path) == _YOUNG
        )
        if not gone and before.names == now.names:
            return
        self.sequence += 1
        for name in gone:
            self._gone[name] = self.sequence
        if len(self._gone) > MAX_NAMES:
            self._gone.clear()
            self._floor = self.sequence

    def _forget(self) -> None:
        """Everything may have changed, up to now and again at the next look."""
        self.sequence += 1
        self._floor = self.sequence + 1
        self._look, self._gone = Look(), {}

    def answer(self, token: str) -> bytes:
        """The answer to git as of the last `update`, version 2 of the protocol."""
        head = f"{self.session}.{self.sequence}\0".encode()
        session, _, number = token.partition(".")
        known = session == self.session and number.isdecimal()
        if not known or not self._floor <= int(number) <= self.sequence:
            return head + EVERYTHING
        since = int(number)
        gone = {name for name, sequence in self._gone.items() if sequence > since}
        return head + b"\0".join(self._look.names | gone)

    # For the next process

    def _save(self) -> None:
        head = f"{self.session} {boot_id().hex()} {self.sequence} {self._floor}".encode()
        parts = [head]
        parts += [b"n" + name for name in self._look.names]
        parts += [b"g%d:%s" % (number, name) for name, number in self._gone.items()]
        parts += [b"f%d:%s" % (mtime, path) for path, mtime in self._look.folders.items()]
        content = b"\0".join(parts)
        if content != self._saved:
            replace_file(self._file, content, mode=0o600)
            self._saved = content

    def _load(self) -> bool:
        """False where it was never written, or by another boot, or is damaged."""
        try:
            head, *rest = self._file.read_bytes().split(b"\0")
            session, boot, sequence, floor = head.decode().split(" ")
            if boot != boot_id().hex():
                return False
            self.session, self.sequence, self._floor = session, int(sequence), int(floor)
            for part in rest:
                kind, name = part[:1], part[1:]
                if kind == b"n":
                    self._look.names.add(name)
                    continue
                number, _, name = name.partition(b":")
                into = self._gone if kind == b"g" else self._look.folders
                into[name] = int(number)
        except (OSError, ValueError):
            return False
        return True


def _inside(path: bytes) -> bytes:
    """A name in the folder: git reads it again."""
    return path + IN_DIRECTORY if path else IN_DIRECTORY[1:]
