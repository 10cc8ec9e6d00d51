"""What can be answered while only the root of the mounted tree is here.

Whoever mounts a large repository gets its root tree at once, and the trees below while the mount is
there already. Until these have come, the mount has the names in the root, what is in its files, and
everything of its directories but how many others are in them, which is told as link count 1: "not
known". What asks for more waits, and so does every change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import O_TRUNC
from typing import Any

import trio

from artifactfs.fs.kernel.interrupt import unless_interrupted
from artifactfs.hydration.errors import HydrationTimeout
from artifactfs.inode_numbers import ROOT_INO

_OF_NAMES = frozenset(("lookup", "readdir"))
"""Of a directory whose tree has to be here."""
_OF_ONE = frozenset(
    ("getattr", "getxattr", "listxattr", "opendir", "read", "readlink", "release", "releasedir")
)
"""Of what the kernel knows already: before the trees have come, that is in the root."""
_OF_THE_WHOLE = frozenset(("fsync", "fsyncdir", "statfs"))


def needs_no_tree(name: str, arguments: Sequence[Any]) -> bool:
    """Whether the request `name` can be answered of the root tree alone. (One of a file that is in
    no tree, which has a number of its own, can be answered anyway.)"""
    if name in _OF_NAMES:
        return bool(arguments[0] == ROOT_INO)
    if name == "open":
        return not arguments[1] & O_TRUNC
    return name in _OF_ONE or name in _OF_THE_WHOLE


class ArrivingTrees:
    """The trees below the root, on their way."""

    def __init__(self, deadline_s: float) -> None:
        """`deadline_s`: how long somebody waits where they do not come."""
        self.here = trio.Event()
        self._deadline_s = deadline_s
        self._trouble = ""

    def have_come(self) -> None:
        """Everything can be answered from now on."""
        self.here.set()

    def failed(self, why: str) -> None:
        """They did not come, and are asked for again."""
        self._trouble = why

    def begin(self) -> None:
        """They are being asked for."""
        self._trouble = ""

    async def wait(self) -> None:
        """Until they are here, however long that takes, as long as nothing is wrong.

        Raises: HydrationTimeout, where something was after the deadline.
        """
        while not self.here.is_set():
            with trio.move_on_after(self._deadline_s):
                await self.here.wait()
            if not self.here.is_set() and self._trouble:
                raise HydrationTimeout(f"the trees of the commit are not here: {self._trouble}")

    async def before(
        self,
        name: str,
        arguments: Sequence[Any],
        is_virtual: Callable[[int], bool],
        caller: Callable[[], int],
    ) -> int:
        """Return when the request `name` can be answered: the process that has sent it, where it
        had to wait, else 0. It can be killed. `caller` knows the last one.

        Raises: HydrationTimeout, InterruptedError.
        """
        if self.here.is_set() or needs_no_tree(name, arguments):
            return 0
        if arguments and is_virtual(arguments[0]):
            return 0
        pid = int(getattr(arguments[-1], "pid", 0)) or caller()
        await unless_interrupted(pid, self.wait)
        return pid
