"""Whether git's index may have entries at or below a path: cheaply, and never wrongly "no".

Paths stand in an index of version 2 and 3 as they are (``gitformat-index``), so a path that is
nowhere in the file has no entry. Version 4 leaves out what a path has in common with the one
before, a split index keeps entries in another file, and a sparse one has a folder for all that is
in it: then every path may have some.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterable
from pathlib import Path

from artifactfs.fs.native.stamps import YOUNG, Stamp, stamp_of

KEPT_S = 60.0
"""What had entries is taken to have some for so long: a git that still has the index of before in
memory may ask."""

MOST_SEARCHED = 200 << 20
"""Bytes that are searched in all for the paths of one look: 40 ms. Beyond, all may have entries."""

Version = tuple[Stamp, int]
"""Stamp and size of an index file."""

_SIGNATURE = b"DIRC"
_PLAIN = (2, 3)
_SPARSE = b"sdir"
_UNTRACKED = b"UNTR"
_HEAD = 8
"""Bytes of an extension's name and length."""
_CHECKSUM = 20
_SHARED = "sharedindex.*"
"""Where the entries of a split index are, beside it (gitrepository-layout)."""


class TrackedPaths:
    """Asks one index file, again where it has changed. Not for several threads at a time."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._asked: tuple[Version | None, frozenset[bytes]] = (None, frozenset())
        self._found: set[bytes] = set()
        self._last_found: dict[bytes, float] = {}

    def among(self, paths: Iterable[bytes]) -> list[bytes]:
        """Those of `paths` (of folders, with a slash at the end, or of files) that may have entries
        now, or had some a minute ago. Blocks."""
        wanted = frozenset(paths)
        if not wanted:
            return []
        started = time.time_ns()
        try:
            found = self._index.stat()
            version: Version | None = (stamp_of(found, started), found.st_size)
        except FileNotFoundError:
            version = None
        except OSError:
            return list(wanted)
        if version is None:
            self._found, self._asked = set(), (None, frozenset())
        elif (version, wanted) != self._asked:
            self._found = self._search(wanted)
            is_young = version[0][1] == YOUNG
            self._asked = None if is_young else version, wanted
        now = time.monotonic()
        self._last_found.update(dict.fromkeys(self._found, now))
        for path in [p for p, at in self._last_found.items() if now - at > KEPT_S]:
            del self._last_found[path]
        return [path for path in wanted if path in self._last_found]

    def _search(self, paths: frozenset[bytes]) -> set[bytes]:
        try:
            with (
                self._index.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                plain = content[:4] == _SIGNATURE and int.from_bytes(content[4:8], "big") in _PLAIN
                if not plain or len(content) * len(paths) > MOST_SEARCHED:
                    return set(paths)
                if content.find(_SPARSE) >= 0 or any(self._index.parent.glob(_SHARED)):
                    return set(paths)
                end = _untracked_cache_at(content)
                return {path for path in paths if _may_have(content, path.rstrip(b"/"), end)}
        except (OSError, ValueError):  # gone, or empty, or just being replaced
            return set(paths)


def _may_have(index: mmap.mmap, path: bytes, end: int) -> bool:
    """Before `end`, an entry of that path (a file, or a submodule) or below it; or of one that
    ends like it."""
    at = index.find(path, 0, end)  # mostly nowhere, which is enough
    return at >= 0 and any(index.find(path + behind, at, end) >= 0 for behind in (b"/", b"\0"))


def _untracked_cache_at(index: mmap.mmap) -> int:
    """Where the extension begins that has the names of what is untracked; the index's end where
    there is none. From an extension on, their lengths lead to the checksum at the end."""
    at = index.find(_UNTRACKED)
    while at >= 0:
        behind = at
        while behind + _HEAD <= len(index) - _CHECKSUM:
            behind += _HEAD + int.from_bytes(index[behind + 4 : behind + _HEAD], "big")
        if behind == len(index) - _CHECKSUM:
            return at
        at = index.find(_UNTRACKED, at + 1)
    return len(index)
