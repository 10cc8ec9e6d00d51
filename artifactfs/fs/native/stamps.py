"""What tells whether a file or folder is as it was: its inode number and its ctime.

Each change gives it another ctime, which nobody can set, or it is another inode. One that was
changed just now may be changed again within the same tick of the clock: its stamp is `YOUNG`.

Finding those of some thousands that are not as they were is done by a small compiled extension
(``_stamps.c``, feature `fast-looks`), which takes a fourth of the time and keeps no other thread
waiting. Without it Python does the same.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import Protocol

from artifactfs.errors import InvalidInput
from artifactfs.features import Features, disabled_features

FEATURE = "fast-looks"

YOUNG = -1
"""In place of a ctime that a change right after the look may have as well."""

_FINE_NS = 20_000_000
"""Two changes so near to each other may have the same ctime: a tick is up to 10 ms."""

_COARSE_NS = 1_000_000_000 + _FINE_NS
"""The same on file systems that keep whole seconds (ext4 with inodes of 128 bytes)."""

_SECOND_NS = 1_000_000_000

_HEAD = struct.Struct("=Qq")
"""What stands before each path of packed stamps: the inode number and the ctime."""

Stamp = tuple[int, int]
"""Inode number and ctime, in ns."""


def stamp_of(found: os.stat_result, started_ns: int) -> Stamp:
    """That of what a look that has begun then finds."""
    ctime = found.st_ctime_ns
    near = _FINE_NS if ctime % _SECOND_NS else _COARSE_NS
    return found.st_ino, YOUNG if ctime >= started_ns - near else ctime


def pack(stamps: Iterable[tuple[bytes, Stamp]]) -> bytes:
    """Paths, relative to one folder, with their stamps: for `changed_paths`. What is in a folder
    follows it."""
    return b"".join(_HEAD.pack(*stamp) + path + b"\0" for path, stamp in stamps)


def changed_paths(folder: bytes, packed: bytes) -> list[bytes] | None:
    """The paths in `packed` that have not that stamp below `folder`, or are young; None: these are
    many. Blocks. Raises: OSError."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        look = _compiled.changed if _compiled is not None else _changed
        found = look(descriptor, packed)
    finally:
        os.close(descriptor)
    return None if found is None else [_path(packed, at) for at in found]


def _changed(folder: int, packed: bytes, /) -> list[int]:
    found, at, link = [], 0, None
    while at < len(packed):
        path = _path(packed, at)
        stamp: Stamp | None = None
        if link is None or not path.startswith(link):
            with suppress(OSError):
                status = os.stat(path, dir_fd=folder, follow_symlinks=False)
                stamp = status.st_ino, status.st_ctime_ns
                if stat.S_ISLNK(status.st_mode):  # what was in it is not looked for behind it
                    link = path + b"/"
        if stamp != _HEAD.unpack_from(packed, at):
            found.append(at)
        at += _HEAD.size + len(path) + 1
    return found


def _path(packed: bytes, at: int) -> bytes:
    start = at + _HEAD.size
    return packed[start : packed.index(b"\0", start)]


def probe(features: Features) -> None:
    """Say why the extension is not there, where it is not."""
    if why_missing:
        features.lacks(FEATURE, why_missing)


class _Compiled(Protocol):
    def changed(self, folder: int, packed: bytes, /) -> list[int] | None: ...


def _load() -> tuple[_Compiled | None, str]:
    """The extension, or why there is none."""
    try:
        if FEATURE in disabled_features():
            return None, "it is switched off"
    except InvalidInput:
        pass  # said where a mount or a command begins
    try:
        loaded: _Compiled = import_module("artifactfs.fs.native._stamps")
    except ModuleNotFoundError:
        return None, ("it was not compiled: install gcc and python3-dev, then ArtifactFS once more")
    except ImportError as error:
        return None, f"it cannot be loaded: {error}"
    return loaded, ""


_compiled, why_missing = _load()
"""`why_missing` is empty where the extension is there."""
