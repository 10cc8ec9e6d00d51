"""Moves an index to another tree as a two-way merge does (git-read-tree), keeping what it can.

Entries are not parsed and written again but copied in runs: 100,000 of them take some 100 ms, of
which most is finding where each begins. Whatever is not the plain case (staged changes in the way,
conflicts, sparse or split indexes) is left to git: `Unusual`.

Stat data of entries that stay is kept, with two exceptions that keep git from overlooking a change:
the new file is younger, so an entry that was *racy* (not older than the index) and that fsmonitor
does not vouch for gets the size 0, as git itself writes it.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import CorruptData, StateError
from artifactfs.git.index.caches import (
    Fsmonitor,
    UntrackedCache,
    decode_cache_tree,
    decode_fsmonitor,
    decode_untracked_cache,
    encode_cached_tree,
    encode_untracked,
)
from artifactfs.git.index.extensions import encode_fsmonitor, extension
from artifactfs.git.index.file import (
    IndexEntry,
    StatData,
    encode_entries,
    encode_index,
    finish_index,
    parse_index,
)
from artifactfs.git.index.primed import LockedIndex, index_mode
from artifactfs.git.index.tree_move import (
    TreeMove,
    TreesRead,
    compare_trees,
)
from artifactfs.git.objects.database import Oid, TreeEntry
from artifactfs.git.objects.tree_diff import TreeChange, TreeSource

GITLINK = 0o160000
_KIND = 0o170000
_STAGE = 0x3000
_EXTENDED = 0x4000
_ASSUME_VALID = 0x8000
_OFFSETS = (b"EOIE", b"IEOT")
"""Extensions with positions in the file; optional, so they are left out."""


class Unusual(StateError):
    """The index holds something that only git itself moves right. The message says what."""


@dataclass(frozen=True, slots=True)
class _Entries:
    """Where each entry of the file is, in its order."""

    offsets: list[int]
    """With the end of the last one at the end."""
    paths: list[bytes]
    special: frozenset[int]
    """Numbers of entries with flags: assume-valid, skip-worktree, intent-to-add."""


class IndexMove:
    """One move of one index. Made from what is on disk; writes nothing.

    `check` says whether the move can be made; `finish` gives the new file.
    """

    def __init__(self, gitdir: Path, odb: TreeSource, old: Oid, new: Oid) -> None:
        """Raises: Unusual, CorruptData, MissingObject, OSError."""
        self._gitdir = gitdir
        with (gitdir / "index").open("rb") as file:
            found = os.fstat(file.fileno())
            self._stamp = _stamp(found)
            self._before = self._content = file.read()
        self._second = found.st_mtime_ns // 1_000_000_000
        if self._content[4:8] not in (b"\0\0\0\2", b"\0\0\0\3"):
            parsed = parse_index(self._content)
            extensions = [extension(name, payload) for name, payload in parsed.extensions]
            self._content = encode_index(parsed.entries, extensions)
        self._entries = _locate(self._content)
        self._number = {path: n for n, path in enumerate(self._entries.paths)}
        self._extensions = _extensions(self._content, self._entries.offsets[-1])
        cached = self._extensions.get(b"TREE")
        tree = decode_cache_tree(cached) if cached is not None else None
        source = TreesRead(odb)
        self._move: TreeMove = compare_trees(source, old, new, tree)
        self.trees = source.trees
        """The trees that were read."""
        self.is_done = all(self._has(path, now) for path, _, now in self._move.changes)
        """The index is at the new tree already, wherever the trees differ."""
        self.fsmonitor = self._fsmonitor()
        """Its `token` tells since when the caller has to name what changed."""
        self._check()

    @property
    def changes(self) -> Sequence[TreeChange]:
        return self._move.changes

    def new_blobs(self) -> list[Oid]:
        """Blobs whose sizes the new entries hold."""
        oids = (now.oid for _, _, now in self.changes if now and now.mode & _KIND != GITLINK)
        return list(dict.fromkeys(oids))

    def is_current(self) -> bool:
        """Whether the index is still the one that this was made from."""
        try:
            return _stamp(os.stat(self._gitdir / "index")) == self._stamp
        except FileNotFoundError:
            return False

    def restore(self) -> None:
        """Put the index back as it was. Raises: IndexLocked, OSError."""
        index = self._gitdir / "index"
        if index.read_bytes() != self._before:
            with LockedIndex(self._gitdir) as lock:
                lock.commit(self._before)

    def _fsmonitor(self) -> Fsmonitor | None:
        payload = self._extensions.get(b"FSMN")
        try:
            return decode_fsmonitor(payload) if payload is not None else None
        except CorruptData:
            return None

    # What has to be so

    def _check(self) -> None:
        if self.is_done:
            return
        removed = {path for path, _, now in self.changes if now is None}
        for path, before, _ in self.changes:
            number = self._number.get(path)
            if before is not None:
                if number in self._entries.special:
                    raise Unusual(f"{_shown(path)} has flags in the index")
                if not self._has(path, before):
                    raise Unusual(f"{_shown(path)} has staged changes")
            elif number is not None:
                raise Unusual(f"{_shown(path)} is staged")
            else:
                self._check_free(path, removed)

    def _has(self, path: bytes, entry: TreeEntry | None) -> bool:
        number = self._number.get(path)
        if number is None or entry is None:
            return number is None and entry is None
        start = self._entries.offsets[number]
        mode = int.from_bytes(self._content[start + 24 : start + 28], "big")
        return (
            mode == index_mode(entry.mode) and self._content[start + 40 : start + 60] == entry.oid
        )

    def _check_free(self, path: bytes, removed: Collection[bytes]) -> None:
        """Nothing staged is above or below `path`, which comes."""
        paths = self._entries.paths
        below = path + b"/"
        position = bisect_left(paths, below)
        while position < len(paths) and paths[position].startswith(below):
            if paths[position] not in removed:
                raise Unusual(f"{_shown(paths[position])} is staged")
            position += 1
        slash = path.rfind(b"/")
        while slash > 0:
            parent = path[:slash]
            if parent in self._number and parent not in removed:
                raise Unusual(f"{_shown(parent)} is staged")
            slash = path.rfind(b"/", 0, slash)

    # The new file

    def finish(
        self,
        stat_of: Callable[[bytes], StatData],
        *,
        changed: Iterable[bytes] | None,
        token: str,
    ) -> bytes:
        """The new index. `stat_of` gives the stat data of a path that is new or has new content.

        `changed` are the paths (directories with a slash at their end) that have changed since
        `fsmonitor.token` and before the move, None where that is not known; `token` is the one
        for now.
        """
        untrusted = self._untrusted(changed)
        runs, count, moved_untrusted = self._runs(stat_of, untrusted)
        parts = [*runs]
        for name, payload in self._extensions.items():
            if name == b"TREE":
                # What the working tree cannot have is in the index, and not in what was compared.
                if self._move.cached is not None and not self._entries.special:
                    parts.append(encode_cached_tree(self._move.cached))
            elif name == b"UNTR":
                parts.append(self._untracked_cache(payload, changed or ()))
            elif name == b"FSMN":
                if self.fsmonitor is not None:
                    now = token if changed is not None else self.fsmonitor.token
                    parts.append(encode_fsmonitor(now, moved_untrusted, count))
            elif name not in _OFFSETS:
                parts.append(extension(name, payload))
        version = int.from_bytes(self._content[4:8], "big")
        return bytes(finish_index(version, count, parts))

    def _untrusted(self, changed: Iterable[bytes] | None) -> set[int] | None:
        """Numbers of the entries that fsmonitor does not vouch for; None: of none."""
        if self.fsmonitor is None or changed is None:
            return None
        found = set(self.fsmonitor.untrusted)
        paths = self._entries.paths
        for path in changed:
            if not path.endswith(b"/"):
                if (number := self._number.get(path)) is not None:
                    found.add(number)
                continue
            position = bisect_left(paths, path)
            while position < len(paths) and paths[position].startswith(path):
                found.add(position)
                position += 1
        return found

    def _runs(
        self, stat_of: Callable[[bytes], StatData], untrusted: set[int] | None
    ) -> tuple[list[bytes], int, list[int]]:
        """The entries in pieces, their number, and the new numbers of those not trusted."""
        plan = _Plan(self._entries, self._smudged(untrusted))
        doubtful = set(self.fsmonitor.untrusted if self.fsmonitor is not None else ())
        doubtful |= untrusted or set()
        for path, _, now in () if self.is_done else self.changes:
            number = self._number.get(path)
            if now is None:
                assert number is not None
                plan.remove(number)
                doubtful.discard(number)
                continue
            entry = IndexEntry(path, index_mode(now.mode), now.oid, stat_of(path))
            is_link = now.mode & _KIND == GITLINK
            if number is None:
                plan.insert(entry, trusted=not is_link)
                continue
            plan.replace(number, entry)
            if is_link:
                doubtful.add(number)
            elif untrusted is not None:
                doubtful.discard(number)
        pieces = plan.pieces(self._content)
        return pieces, plan.count, plan.renumbered(doubtful)

    def _smudged(self, untrusted: set[int] | None) -> dict[int, bytes]:
        """Racy entries that nobody vouches for, with the size 0."""
        content, offsets = self._content, self._entries.offsets
        second = self._second.to_bytes(4, "big")
        numbers: Iterable[int] = range(len(self._entries.paths)) if untrusted is None else untrusted
        found = {}
        for number in numbers:
            start = offsets[number]
            if content[start + 8 : start + 12] >= second:
                end = offsets[number + 1]
                found[number] = content[start : start + 36] + bytes(4) + content[start + 40 : end]
        return found

    def _untracked_cache(self, payload: bytes, changed: Iterable[bytes]) -> bytes:
        """Directories where something came, went, or changed are read again by git."""
        try:
            cache: UntrackedCache = decode_untracked_cache(payload)
        except CorruptData:
            return extension(b"UNTR", payload)
        for path in changed:
            cache.distrust(path.rstrip(b"/"), below=path.endswith(b"/"))
        for path in self._move.folders:
            cache.distrust(path)
        return encode_untracked(cache)


class _Plan:
    """What becomes of the entries of a file."""

    def __init__(self, entries: _Entries, edits: dict[int, bytes]) -> None:
        self._entries = entries
        self._edits = edits
        self._removed: list[int] = []
        self._added: list[tuple[bytes, bytes, bool]] = []

    def remove(self, number: int) -> None:
        self._edits[number] = b""
        self._removed.append(number)

    def replace(self, number: int, entry: IndexEntry) -> None:
        self._edits[number] = bytes(encode_entries([entry]))

    def insert(self, entry: IndexEntry, *, trusted: bool) -> None:
        self._added.append((entry.path, bytes(encode_entries([entry])), trusted))

    @property
    def count(self) -> int:
        return len(self._entries.paths) - len(self._removed) + len(self._added)

    def pieces(self, content: bytes) -> list[bytes]:
        """The new entries: runs of what stays, and what is new in between."""
        offsets = self._entries.offsets
        self._removed.sort()
        self._added.sort()
        self._places = [bisect_left(self._entries.paths, path) for path, _, _ in self._added]
        out: list[bytes] = []
        done = at = 0
        for number in sorted({*self._edits, *self._places}):
            out.append(content[offsets[done] : offsets[number]])
            while at < len(self._places) and self._places[at] == number:
                out.append(self._added[at][1])
                at += 1
            done = number
            if number in self._edits:
                out.append(self._edits[number])
                done = number + 1
        out.append(content[offsets[done] : offsets[-1]])
        return out

    def renumbered(self, numbers: Iterable[int]) -> list[int]:
        """New numbers of the entries `numbers` and of those that came and are not trusted."""
        removed, places = self._removed, self._places
        found = [
            number + bisect_left(places, number + 1) - bisect_left(removed, number)
            for number in numbers
        ]
        for rank, (place, (_, _, trusted)) in enumerate(zip(places, self._added, strict=True)):
            if not trusted:
                found.append(place + rank - bisect_left(removed, place))
        return sorted(found)


def _locate(content: bytes) -> _Entries:
    """Find the entries of a file of version 2 or 3. Raises: Unusual, CorruptData."""
    count = int.from_bytes(content[8:12], "big")
    offsets, paths, special = [], [], []
    position = 12
    try:
        for number in range(count):
            flags = content[position + 60] << 8 | content[position + 61]
            start = position + 62
            if flags & (_STAGE | _EXTENDED | _ASSUME_VALID):
                if flags & _STAGE:
                    raise Unusual("you need to resolve your current index first")
                special.append(number)
                if flags & _EXTENDED:
                    start += 2
            length = flags & 0xFFF
            if length == 0xFFF:
                length = content.index(0, start) - start
            paths.append(content[start : start + length])
            offsets.append(position)
            position += start - position + length + 8 & ~7
    except (IndexError, ValueError):
        raise CorruptData("the index is malformed") from None
    offsets.append(position)
    return _Entries(offsets, paths, frozenset(special))


def _extensions(content: bytes, position: int) -> Mapping[bytes, bytes]:
    """The extensions in their order. Raises: Unusual for one that changes what entries mean."""
    found: dict[bytes, bytes] = {}
    end = len(content) - 20
    while position + 8 <= end:
        name = content[position : position + 4]
        size = int.from_bytes(content[position + 4 : position + 8], "big")
        if name[:1].islower():
            raise Unusual(f"the index has the extension {name.decode('ascii', 'replace')}")
        found[name] = content[position + 8 : position + 8 + size]
        position += 8 + size
    if position != end:
        raise CorruptData("the index is malformed")
    return found


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "replace")
