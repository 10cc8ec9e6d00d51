"""What git's fsmonitor is answered where the kernel writes: from looks at the upper folder.

Each look (`artifactfs.fs.native.looks`) finds what has changed since the look before, and gives it
the next number; an answer names what has a higher number than the token. So it is monotonic, as the
journal of our own mount is: a name stays in it after it is gone, else git would keep it in its
untracked cache, or take its index entry for unchanged. Git may also have seen a file that came and
went between two looks: it changed the ctime of its folder, so the folder is named.

The state is written down before an answer is given, for the next process, with its CRC-32: a name
that a damaged file had lost would never be given again. After a boot everything may have changed,
since the disk may have forgotten what we noted.
"""

from __future__ import annotations

import secrets
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifactfs.fs.gitview.journal import EVERYTHING
from artifactfs.fs.inodes.seals import boot_id
from artifactfs.fs.native.looks import (
    Look,
    Seen,
    TooMany,
    differences,
    each_time,
    look,
    stamps_of,
)
from artifactfs.fs.native.newfolders import NewFolders
from artifactfs.fs.native.stamps import changed_paths
from artifactfs.fs.native.tracked import TrackedPaths
from artifactfs.fs.native.view import View
from artifactfs.system.files import replace_file

MAX_NAMES = 100_000
"""Beyond, the answer is that everything may have changed: git stats everything, as without us."""


@dataclass(frozen=True, slots=True)
class _State:
    """What the looks so far have found; each look that finds something makes another one."""

    session: str
    sequence: int = 0
    floor: int = 0
    """Older tokens get "everything may have changed"."""
    changed: Mapping[bytes, int] = field(default_factory=dict)
    """Names → the number of the last look that found them changed."""
    each_time: Sequence[bytes] = ()
    """Names that git is told whether they have changed or not, if its index may have them."""
    told: Sequence[bytes] | None = None
    """Those of them that it may have, and whose files are not looked at; None: all."""

    @classmethod
    def begin(cls) -> _State:
        return cls(secrets.token_hex(8))

    def after(self, names: Iterable[bytes], each_time: Sequence[bytes]) -> _State:
        """When a look has found `names` changed."""
        sequence = self.sequence + 1
        changed = {**self.changed, **dict.fromkeys(names, sequence)}
        if len(changed) > MAX_NAMES:
            return _State(self.session, sequence, sequence, {}, each_time)
        return _State(self.session, sequence, self.floor, changed, each_time)

    def forgotten(self) -> _State:
        """Everything may have changed, up to now and again at the next look."""
        return _State(self.session, self.sequence + 1, self.sequence + 2)


class UpperJournal:
    """The looks at one upper folder. `file` keeps them over restarts; `update` is for threads."""

    def __init__(self, file: Path, view: View, index: Path) -> None:
        """`index` is git's, of the mount."""
        self._file = file
        self._view = view
        self._tracked = TrackedPaths(index)
        self._new_folders = NewFolders(view.upper)
        self._stamps: bytes | None = None
        """Of all that the look before has seen, packed: the next one begins with them."""
        self._lock = threading.Lock()
        self._look: Look = {}
        self._is_kept = True
        self._state = self._load() or _State.begin()

    @property
    def session(self) -> str:
        return self._state.session

    @property
    def initial_token(self) -> str:
        """Of the time before anything was written."""
        return f"{self.session}.0"

    def update(self) -> None:
        """Look once more. Blocks. Raises: MissingObject, CorruptData."""
        with self._lock:
            try:
                suspect = self._suspect()
                if suspect is None or suspect:
                    self._take(look(self._view, self._look, suspect))
            except (TooMany, OSError):
                self._look, self._state, self._stamps = {}, self._state.forgotten(), None
                self._is_kept = False
            self._look_into_new_folders()
            if not self._is_kept:
                self._keep()

    def _suspect(self) -> list[bytes] | None:
        """The paths of which the look before may not be true any more; None: any."""
        if self._stamps is None:
            return None
        return changed_paths(self._view.upper, self._stamps)

    def _look_into_new_folders(self) -> None:
        state = self._state
        tracked = self._tracked.among(state.each_time)
        names, told = self._new_folders.look(tracked, self._look)
        if names:
            state = state.after(names, state.each_time)
            self._is_kept = False
        self._state = replace(state, told=told)

    def _take(self, now: Look) -> None:
        names = differences(self._look, now)
        self._look, self._stamps = now, stamps_of(now)
        if names:
            self._state = self._state.after(names, each_time(now))
            self._is_kept = False

    def answer(self, token: str, *, any_index: bool = False) -> bytes:
        """The answer to git as of the last `update`, version 2 of the protocol. With `any_index`
        to a git that may have read another index than the mount's."""
        state = self._state
        head = f"{state.session}.{state.sequence}\0".encode()
        session, _, number = token.partition(".")
        known = session == state.session and number.isdecimal()
        if not known or not state.floor <= int(number) <= state.sequence:
            return head + EVERYTHING
        since = int(number)
        names: set[bytes] = set()
        if since < state.sequence:
            names.update(name for name, number in state.changed.items() if number > since)
        names.update(state.each_time if any_index or state.told is None else state.told)
        return head + (b"\0".join(names) if len(names) <= MAX_NAMES else EVERYTHING)

    # For the next process

    def _keep(self) -> None:
        state = self._state
        head = f"{state.session} {boot_id().hex()} {state.sequence} {state.floor}".encode()
        parts = [head]
        parts += [b"c%d:%s" % (number, name) for name, number in state.changed.items()]
        for path, seen in self._look.items():
            flags = seen.own + 2 * seen.top + 4 * seen.over_file
            parts.append(b"d%d %d %d:%s" % (*seen.stamp, flags, path))
            for name, stamp in seen.files.items():
                parts.append(b"f%d %d %d:%s" % (*stamp, name in seen.covering, name))
        try:
            content = b"\0".join(parts)
            replace_file(self._file, b"%08x\0%s" % (zlib.crc32(content), content), mode=0o600)
            self._is_kept = True
        except OSError:  # a full disk: no token of this session is good for another process
            self._look, self._state, self._stamps = {}, _State.begin(), None

    def _load(self) -> _State | None:
        """None where it was never written, or by another boot, or is damaged."""
        try:
            crc, _, content = self._file.read_bytes().partition(b"\0")
            if int(crc, 16) != zlib.crc32(content):
                return None
            head, *parts = content.split(b"\0")
            session, boot, sequence, floor = head.decode().split(" ")
            if boot != boot_id().hex():
                return None
            changed, self._look = _parse(parts)
            return _State(session, int(sequence), int(floor), changed, each_time(self._look))
        except (OSError, ValueError):
            return None


def _parse(parts: Iterable[bytes]) -> tuple[dict[bytes, int], Look]:
    """The changed names, and the last look. Raises: ValueError."""
    changed: dict[bytes, int] = {}
    found: Look = {}
    seen: Seen | None = None
    for part in parts:
        numbers, separator, name = part[1:].partition(b":")
        if not separator:
            raise ValueError("a part has no name")
        values = [int(number) for number in numbers.split(b" ")]
        if part[:1] == b"c":
            (changed[name],) = values
            continue
        ino, ctime, flags = values
        if part[:1] == b"d":
            own, top, over = bool(flags & 1), bool(flags & 2), bool(flags & 4)
            seen = found[name] = Seen((ino, ctime), own=own, top=top, over_file=over)
        elif seen is not None:
            seen.files[name] = ino, ctime
            if flags:
                seen.covering |= {name}
    return changed, found
