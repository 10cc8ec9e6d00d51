"""The files of new folders in which git tracks something: most are a few, as a checkout makes them.

A folder that is new, or replaced what was below, is not looked into by `looks`, since what is in it
is mostly untracked, and much: then the names in it are all that counts. Where git's index may have
something in it, each file counts. As long as they are few they are looked at, and git is told of
those that changed; else it is told of the folder each time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from artifactfs.fs.native.looks import Look
from artifactfs.fs.native.stamps import YOUNG, Stamp, stamp_of

MOST_FILES = 1_000
"""In all such folders: 3 ms."""


class NewFolders:
    """Remembers the files of such folders of one upper folder. For one thread at a time."""

    def __init__(self, upper: bytes) -> None:
        self._upper = upper
        self._known: dict[bytes, Mapping[bytes, Stamp]] = {}

    def look(self, paths: Sequence[bytes], found: Look) -> tuple[set[bytes], list[bytes]]:
        """What to tell of `paths`: names that changed since the look before, and the paths that are
        to be told each time. `found` is the look at the whole. Blocks."""
        started = time.time_ns()
        moved = [path + b"/" for path, seen in found.items() if seen.moved]
        before, self._known = self._known, {}
        names: set[bytes] = set()
        each_time: list[bytes] = []
        left = MOST_FILES
        for path in paths:
            stamps = None
            if path.endswith(b"/") and not any(one.startswith(path) for one in moved):
                stamps = self._stamps(path, left, started)
            if stamps is None:
                each_time.append(path)
                continue
            left -= len(stamps)
            self._known[path] = stamps
            names.update(_changed(before[path], stamps) if path in before else (path,))
        return names, each_time

    def _stamps(self, top: bytes, most: int, started: int) -> dict[bytes, Stamp] | None:
        """The files below `top`; None: too many, or they cannot be looked at."""
        stamps: dict[bytes, Stamp] = {}
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._upper + b"/" + folder) as written:
                    for one in written:
                        if one.is_dir(follow_symlinks=False):
                            folders.append(folder + one.name + b"/")
                        elif len(stamps) == most:
                            return None
                        else:
                            status = one.stat(follow_symlinks=False)
                            stamps[folder + one.name] = stamp_of(status, started)
            except OSError:  # it changes at this moment
                return None
        return stamps


def _changed(before: Mapping[bytes, Stamp], now: Mapping[bytes, Stamp]) -> set[bytes]:
    return {
        path
        for path in before.keys() | now.keys()
        if before.get(path) != now.get(path) or before[path][1] == YOUNG
    }
