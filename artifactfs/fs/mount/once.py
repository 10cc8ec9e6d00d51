"""Changes that are made once, though the kernel asks for them twice.

A process that has made a change may die before it has said so. The next one gets the request again,
and must not make a second folder, or say that there is one already. So the number of each such
request is written down in the record of its change. Changes and answers follow each other without
another task in between, so a process leaves at most one that is made and not answered. What it was
left itself by those before it, and has not met again yet, it hands on.

The kernel puts what it sends again before everything else (Linux: `fuse_resend`). So with the first
request that comes for the first time it is known that whatever has not come again was answered.
"""

from __future__ import annotations

import struct

from artifactfs.fs.kernel.handover import RESENT
from artifactfs.fs.overlay.database import ANSWERING, ANSWERING_BEFORE, Overlay
from artifactfs.fs.overlay.pending import Edit, delete_meta, put_meta

ONCE = {"mknod", "create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename"}
ONCE |= {"setxattr", "removexattr"}
"""Requests that are another thing, or refused, when they are done a second time."""

MAKES = {"mknod": 0, "create": 0, "mkdir": 0, "symlink": 0, "link": 1}
"""Of those, what is answered with an inode: where its directory and name are in the arguments."""


class Once:
    """The requests of one mount that change something."""

    __slots__ = ("_in_hand", "_overlay", "done", "on")

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self.on = False
        """Another process may go on with this mount, and programs write through us."""
        self.done: frozenset[int] = frozenset()
        """Numbers of requests that processes before have done, and may not have answered."""
        self._in_hand: set[int] = set()

    def begin(self, *, taken_over: bool) -> None:
        """From now on. `taken_over`: the mount is one that another process has served."""
        self.on = True
        self._set(left_in(self._overlay) if taken_over else frozenset())

    def _set(self, done: frozenset[int]) -> None:
        self.done = done
        numbers = struct.pack(f"<{len(done)}Q", *sorted(done))
        self._overlay.answering_before = put_meta(ANSWERING_BEFORE, numbers) if done else None

    def was_done(self, unique: int) -> bool:
        """Whether the request with the kernel's number `unique` was done by a process before. If
        so, `answered` is to be called next."""
        number = unique & ~RESENT
        if number == unique:
            if not self.done <= self._in_hand:
                self._set(self.done & self._in_hand)
            return False
        if number in self.done:
            self._in_hand.add(number)
            return True
        return False

    def answered(self, unique: int) -> None:
        """Nobody asks for it any more."""
        number = unique & ~RESENT
        self._in_hand.discard(number)
        self._set(self.done - {number})


def left_in(overlay: Overlay) -> frozenset[int]:
    """The numbers that are written down in an overlay."""
    packed = bytes(overlay.meta.get(ANSWERING_BEFORE, b""))
    before = struct.unpack(f"<{len(packed) // 8}Q", packed)
    return frozenset((*before, int(overlay.meta.get(ANSWERING, 0)))) - {0}


def forget(overlay: Overlay) -> list[Edit]:
    """For a mount that is new: requests count anew."""
    return [delete_meta(key) for key in (ANSWERING, ANSWERING_BEFORE) if key in overlay.meta]
