"""Names that the kernel may still know, though a switch has changed what they stand for."""

from __future__ import annotations

import logging

import pyfuse3
import trio

log = logging.getLogger(__name__)

SETTLE_S = 5.0
"""A rename that waits for content holds the kernel's lock on its directory for longer than that:
whoever switches then does not wait for it, and the names follow when it is done."""

Name = tuple[int, bytes]
"""Inode number of the directory, and a name in it."""


class StaleNames:
    """Collects them, and lets the kernel forget them. It takes 10 µs for each, in a thread: the
    kernel locks the directory, which a look-up that waits for our answer may have locked."""

    def __init__(self) -> None:
        self._names: list[Name] = []

    def add(self, directory: int, name: bytes) -> None:
        self._names.append((directory, name))

    async def settle(self) -> None:
        """Return when nobody finds what was there before the switch, or after `SETTLE_S`."""
        names, self._names = self._names, []
        if names:
            with trio.move_on_after(SETTLE_S):
                await trio.to_thread.run_sync(_forget, names, abandon_on_cancel=True)


def _forget(names: list[Name]) -> None:
    for directory, name in names:
        try:
            pyfuse3.invalidate_entry(directory, name)
        except FileNotFoundError:
            continue  # the kernel does not know it
        except OSError as error:
            log.warning("the kernel keeps %r of inode %d: %s", name, directory, error)
