"""Looks at an upper folder: what it holds, and what git has to be told of since the look before.

A folder that has its stamp (`artifactfs.fs.native.stamps`) of the look before has the same names in
it, and is not read again: 50,000 files of a package tree cost a system call for each of its
folders.

What is told, in the words of git's fsmonitor (see `artifactfs.fs.gitview.journal`):

* a file in a folder in which both layers show, when it appeared, vanished or changed;
* a folder that appeared, vanished or changed, by a path in it: git reads it again;
* ``path/`` of a folder that hides or replaces what was below (it is new, or was moved), each time
  that git's index may have something in it: its files are not looked at here, so git does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from artifactfs.fs.gitview.journal import IN_DIRECTORY
from artifactfs.fs.inodes.listings import base_tree_of, is_directory_entry
from artifactfs.fs.native.marks import is_whiteout, marks_of, redirected
from artifactfs.fs.native.stamps import YOUNG, Stamp, pack, stamp_of
from artifactfs.fs.native.view import View, join
from artifactfs.git.objects.database import Oid, TreeEntry

MAX_SEEN = 500_000
"""Files and folders that a look remembers. Beyond, git stats everything, as without us."""

MOST_STAMPS = 50_000
"""Files and folders of which the next look first finds those that changed: 160 bytes each."""


class TooMany(Exception):
    """More than a look may remember."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of the upper one, and what its parent says of it. `entry` is what the base tree has
    at this name where that would show, `lower` the path of the parent below."""

    upper: bytes
    path: bytes
    entry: TreeEntry | None
    lower: bytes | None
    in_own: bool
    """Within a folder that is `Seen.own`."""


@dataclass(slots=True)
class Seen:
    """A folder, as a look saw it. `place` is None where that was another process."""

    stamp: Stamp
    own: bool = False
    """Nothing of the base tree shows at its own place in it."""
    top: bool = False
    """It is `own`, and its parent is not."""
    moved: bool = False
    """It is `own`, and something of the base tree from elsewhere shows in it."""
    over_file: bool = False
    """The base tree has a file of that name."""
    place: Place | None = None
    folders: list[Place] = field(default_factory=list)
    files: dict[bytes, Stamp] = field(default_factory=dict)
    """Of a folder that is not `own`. A removed name has the ctime of the folder."""
    covering: frozenset[bytes] = frozenset()
    """Those of `files` where the base tree has a folder."""
    below: list[bytes] = field(default_factory=list)
    """The folders of a base tree that shows at another place."""
    packed: bytes | None = None
    """Its stamp and those of its files, once that is known."""


Look = dict[bytes, Seen]
"""By path."""


def look(view: View, before: Mapping[bytes, Seen], changed: Iterable[bytes] | None = None) -> Look:
    """Walk the upper folder. `changed` are the paths of which `before` may not be true any more:
    nothing else is looked at; None: everything is.

    Raises: TooMany, OSError, MissingObject, CorruptData.
    """
    started, found, count = time.time_ns(), Look(), 0
    top = view.top.upper
    assert top is not None
    suspect = None if changed is None else {*changed, *map(os.path.dirname, changed)}
    stack = [Place(top, b"", None, b"", in_own=False)]
    while stack:
        place = stack.pop()
        known = before.get(place.path)
        if known is not None and known.place is not place and known.place != place:
            known = None  # something else shows there now
        try:
            if known is not None and suspect is not None and place.path not in suspect:
                seen = known
            else:
                seen = _see(view, place, known, started)
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
            continue
        found[place.path] = seen
        stack.extend(seen.folders)
        count += 1 + len(seen.files) + len(seen.below)
        if count > MAX_SEEN:
            raise TooMany
    return found


def _see(view: View, place: Place, known: Seen | None, started: int) -> Seen:
    stamp = stamp_of(os.lstat(place.upper), started)
    if known is None or known.stamp != stamp or stamp[1] == YOUNG:
        return _read(view, place, stamp, started)
    if known.files:
        known = Seen(
            stamp,
            top=known.top,
            place=place,
            folders=known.folders,
            files=_stamps(place.upper, known.files, stamp, started),
            covering=known.covering,
        )
    return known


def _stamps(
    folder: bytes, names: Mapping[bytes, Stamp], stamp: Stamp, started: int
) -> dict[bytes, Stamp]:
    """The same names once more."""
    found, prefix = {}, folder + b"/"
    for name, before in names.items():
        if before[0] == 0:
            found[name] = (0, stamp[1])
            continue
        try:
            found[name] = stamp_of(os.lstat(prefix + name), started)
        except FileNotFoundError:
            continue
    return found


def _read(view: View, place: Place, stamp: Stamp, started: int) -> Seen:
    seen = Seen(stamp, place=place)
    lower, tree = _what_shows(view, place, seen)
    below = view.entries(tree)
    covering = set()
    with os.scandir(place.upper) as written:
        for one in written:
            name = one.name
            if not place.path and name in view.hidden:
                continue
            entry = below.get(name)
            if one.is_dir(follow_symlinks=False):
                path = join(place.path, name)
                seen.folders.append(Place(one.path, path, entry, lower, in_own=seen.own))
            elif not seen.own:
                try:
                    status = one.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                gone = is_whiteout(status)
                seen.files[name] = (0, stamp[1]) if gone else stamp_of(status, started)
                if entry is not None and is_directory_entry(entry):
                    covering.add(name)
    seen.covering = frozenset(covering)
    return seen


def _what_shows(view: View, place: Place, seen: Seen) -> tuple[bytes | None, Oid | None]:
    """The path below and the tree that show in a folder, after what `seen` says of it is set."""
    if not place.path:
        return b"", view.base
    entry = place.entry
    marks = marks_of(place.upper)
    is_folder = entry is not None and is_directory_entry(entry)
    lower: bytes | None = None
    tree: Oid | None = None
    if marks.redirect is not None:
        seen.own = True
        lower = redirected(place.lower, marks.redirect)
        tree = view.tree_at(lower)
        seen.below = list(_folders_in(view, place.path, tree))
    elif marks.opaque or entry is None or not is_folder:
        seen.own = True
    else:
        seen.own = place.in_own
        lower = join(place.lower or b"", entry.name)
        tree = base_tree_of(entry)
    seen.moved = seen.own and lower is not None
    seen.top = seen.own and not place.in_own
    seen.over_file = seen.top and entry is not None and not is_folder
    return lower, tree


def _folders_in(view: View, path: bytes, tree: Oid | None) -> Iterator[bytes]:
    """The folders of a base tree that shows at `path`, below that."""
    stack, count = [(path, tree)], 0
    while stack:
        path, tree = stack.pop()
        for name, entry in view.entries(tree).items():
            if is_directory_entry(entry):
                stack.append((path + b"/" + name, base_tree_of(entry)))
                yield stack[-1][0]
                count += 1
                if count > MAX_SEEN:
                    raise TooMany


def stamps_of(found: Mapping[bytes, Seen]) -> bytes | None:
    """All that a look has seen, packed; None: it is too much, or was another process's."""
    if sum(1 + len(seen.files) for seen in found.values()) > MOST_STAMPS:
        return None
    parts = []
    for path, seen in found.items():
        if seen.place is None:
            return None
        if seen.packed is None:
            seen.packed = pack(_stamps_in(path, seen))
        parts.append(seen.packed)
    return b"".join(parts)


def _stamps_in(path: bytes, seen: Seen) -> Iterator[tuple[bytes, Stamp]]:
    yield path or b".", seen.stamp
    for name, stamp in seen.files.items():
        if stamp[0] != 0:  # else it goes with its folder
            yield join(path, name), stamp


def each_time(found: Mapping[bytes, Seen]) -> list[bytes]:
    """What git is told whether it has changed or not."""
    return [name for path, seen in found.items() if seen.top for name in _whole(path, seen)]


def differences(before: Mapping[bytes, Seen], now: Mapping[bytes, Seen]) -> set[bytes]:
    """What git is told of one look after the other."""
    names: set[bytes] = set()
    for path in before.keys() | now.keys():
        old, new = before.get(path), now.get(path)
        if old is new:
            continue
        if old is None or new is None or _is_another(old, new):
            names.add(inside(path))
            for seen in (old, new):
                if seen is not None:
                    names.update(_whole(path, seen))
                    names.update(map(inside, seen.below))
        elif old.stamp != new.stamp or old.stamp[1] == YOUNG:
            names.add(inside(path))
        names.update(_files(path, old, new))
    return names


def _is_another(old: Seen, new: Seen) -> bool:
    """Whether it is not the same folder, or shows something else."""
    return old.stamp[0] != new.stamp[0] or (old.own, old.top) != (new.own, new.top)


def _whole(path: bytes, seen: Seen) -> Iterator[bytes]:
    """A folder with all that is in it."""
    if seen.top:
        yield path + b"/"
        if seen.over_file:
            yield path


def _files(path: bytes, old: Seen | None, new: Seen | None) -> Iterator[bytes]:
    before = old.files if old is not None else {}
    now = new.files if new is not None else {}
    for name in before.keys() | now.keys():
        stamp = before.get(name)
        if stamp is None or stamp != now.get(name) or stamp[1] == YOUNG:
            full = join(path, name)
            yield full
            if any(seen is not None and name in seen.covering for seen in (old, new)):
                yield full + b"/"


def inside(path: bytes) -> bytes:
    """A name in the folder: git reads it again."""
    return path + IN_DIRECTORY if path else IN_DIRECTORY[1:]
