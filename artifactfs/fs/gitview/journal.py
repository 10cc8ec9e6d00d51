"""Which paths changed: what Git's fsmonitor asks (githooks, ``fsmonitor-watchman`` version 2).

Every change has a sequence number, and a token is ``SESSION.NUMBER``. The journal is monotonic: a
path that was created and deleted again is reported again, else Git's untracked cache keeps it.

A directory that appeared or vanished is noted as ``path/``. Git then distrusts the index entries
below it, and the untracked cache of its parent. The untracked cache of the directories *below*
(another directory may have been moved to this place) needs a path in each of them, which the
answer makes up from the tree as it is now: so renaming a directory costs one entry, whatever is
in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

MAX_PATHS = 100_000
"""Beyond this the journal starts anew, and older tokens get "everything may have changed"."""

MAX_BELOW = 20_000
"""Directories below changed directories that one answer may name."""

EVERYTHING = b"/"

IN_DIRECTORY = b"/.artifact-fs-changed"
"""A name that need not exist: it makes Git read the directory again."""


class ChangeJournal:
    """The changes of one mount, in order. In memory; see `dump` for clean restarts."""

    def __init__(self) -> None:
        self.session = secrets.token_hex(8)
        self.sequence = 0
        self._floor = 0
        self.issued = 0
        """The newest number that was handed out in a token."""
        self._paths: dict[bytes, int] = {}  # in the order of their numbers

    def changed(self, path: bytes | None) -> None:
        """The file `path` was created, removed or changed. None (no name left) is ignored."""
        if path is None:
            return
        self.sequence += 1
        self._paths.pop(path, None)
        self._paths[path] = self.sequence
        if len(self._paths) > MAX_PATHS:
            self._paths.clear()
            self._floor = self.sequence

    def directory_changed(self, path: bytes | None) -> None:
        """The directory `path` appeared, vanished or was replaced, with all that is in it."""
        if path is not None:
            self.changed(path + b"/")

    def everything_changed(self) -> None:
        self.sequence += 1
        self._paths.clear()
        self._floor = self.sequence

    def token(self) -> str:
        """A token for now: later answers to it hold what changes from here on."""
        self.issued = self.sequence
        return f"{self.session}.{self.sequence}"

    @property
    def initial_token(self) -> str:
        """A token for the time before the first change, unknown where that was not seen."""
        return f"{self.session}.0"

    def since(self, token: str) -> list[bytes] | None:
        """Paths that changed after `token`, newest first; None: everything may have."""
        session, _, number = token.partition(".")
        if session != self.session or not number.isdecimal():
            return None
        after = int(number)
        if not self._floor <= after <= self.sequence:
            return None
        found = []
        for path, sequence in reversed(self._paths.items()):
            if sequence <= after:
                break
            found.append(path)
        return found

    def answer(self, token: str, below: Callable[[bytes, int], Iterable[bytes] | None]) -> bytes:
        """The answer to Git, version 2 of the protocol.

        `below(path, limit)` gives the directories at and below `path`, as they are now: none
        where it is not a directory, None where there are more than `limit`.
        """
        paths = self.since(token)
        head = self.token().encode() + b"\0"
        if paths is None:
            return head + EVERYTHING
        seen: set[bytes] = set()
        for path in [path for path in paths if path.endswith(b"/")]:
            if path[:-1] in seen:
                continue
            directories = below(path[:-1], MAX_BELOW - len(seen))
            if directories is None:
                return head + EVERYTHING
            seen.update(directories)
        paths.extend(path + IN_DIRECTORY for path in seen)
        return head + b"\0".join(paths)

    def dump(self) -> bytes:
        """The journal as bytes, to be kept over a clean restart."""
        head = f"{self.session} {self.sequence} {self._floor}".encode()
        return b"\0".join([head, *(b"%d:%s" % (n, path) for path, n in self._paths.items())])

    def load(self, dumped: bytes) -> None:
        """Go on from `dump`."""
        head, *rest = dumped.split(b"\0")
        session, sequence, floor = head.decode().split(" ")
        self.session = session
        self.sequence = self.issued = int(sequence)
        self._floor = int(floor)
        for item in rest:
            number, _, path = item.partition(b":")
            self._paths[path] = int(number)
