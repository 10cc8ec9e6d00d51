"""What the kernel may still know, though a switch has changed it: names, and listings."""

from __future__ import annotations

import contextlib
import logging

import pyfuse3
import trio

log = logging.getLogger(__name__)

FLUSH_S = 5.0
"""A rename that waits for content holds the kernel's lock on its directory for longer than that:
whoever switches then does not wait for it, and the names follow when it is done."""

Name = tuple[int, bytes]
"""Inode number of the directory, and a name in it."""


class StaleEntries:
    """Collects them, and lets the kernel forget them. It takes 10 µs for each, in a thread: the
    kernel locks the directory, which a look-up that waits for our answer may have locked."""

    def __init__(self) -> None:
        self._names: list[Name] = []
        self._listings: list[int] = []

    def add(self, directory: int, name: bytes) -> None:
        """What is called `name` in `directory` is something else now."""
        self._names.append((directory, name))

    def add_listing(self, directory: int) -> None:
        """The names in `directory` are others now."""
        self._listings.append(directory)

    async def flush(self) -> None:
        """Return when nobody finds what was there before the switch, or after `FLUSH_S`."""
        names, self._names = self._names, []
        listings, self._listings = self._listings, []
        if names or listings:
            with trio.move_on_after(FLUSH_S):
                await trio.to_thread.run_sync(_forget, names, listings, abandon_on_cancel=True)


def _forget(names: list[Name], listings: list[int]) -> None:
    for directory in listings:
        try:
            pyfuse3.invalidate_inode(directory)
        except FileNotFoundError:
            continue  # the kernel does not know it
        except OSError as error:
            log.warning("the kernel keeps the listing of inode %d: %s", directory, error)
    for directory, name in names:
        try:
            pyfuse3.invalidate_entry(directory, name)
        except FileNotFoundError:
            continue  # the kernel does not know it
        except OSError as error:
            log.warning("the kernel keeps %r of inode %d: %s", name, directory, error)


def invalidate_attributes(ino: int) -> None:
    """Have the kernel ask again. Safe in a handler: it takes no lock that somebody may hold who
    waits for us."""
    with contextlib.suppress(FileNotFoundError):  # the kernel has let go of it meanwhile
        pyfuse3.invalidate_inode(ino, attr_only=True)
