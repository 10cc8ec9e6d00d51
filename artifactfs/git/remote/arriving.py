"""History that is on its way: what of it is here, and who waits for the rest.

`fetch_history` reports its steps here, and `fs/gitview/gate.py` has git wait here for objects that
it would otherwise report as missing. A wait ends when the object is here, when the fetch fails, or
after `LONGEST_S`. After a failure nothing waits until the next try has received something.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.remote.frontier import Frontier

GiveWay = Callable[[float], Awaitable[None]]

LONGEST_S = 1_800.0
"""A wait ends then, whatever happens: the history of Linux takes a third of it at 10 MB/s."""

_UNIQUE = 7
"""Digits by which git names an object in short: fewer may mean another one when all are here."""


class ArrivingHistory:
    """The history of one gitdir. Every method is called from the event loop."""

    def __init__(self, gitdir: Path, odb: ObjectDatabase, *, complete: bool) -> None:
        self._odb = odb
        self._frontier = Frontier(gitdir, odb)
        self._on_its_way = not complete
        self._changed = trio.Event()
        self._waiting = 0
        self.done = trio.Event()
        """Is set when all of it is here, and nothing more is done for it."""

    @property
    def on_its_way(self) -> bool:
        """Whether something is missing and a fetch of it has not failed."""
        return self._on_its_way

    def unless_awaited(self, give_way: GiveWay | None) -> GiveWay | None:
        """`give_way` for a fetch of history, which gives way to nobody while programs wait for it.

        Its call is the sign that the fetch gets an answer.
        """

        async def give_way_or_not(seconds: float) -> None:
            self._on_its_way = True
            if give_way is not None and not self._waiting:
                await give_way(seconds)

        return give_way_or_not

    def note_packs(self) -> None:
        """Packs with some of it are in the gitdir."""
        self._change()

    def fail(self) -> None:
        """The fetch has failed: nobody waits for it any more."""
        self._on_its_way = False
        self._change()

    def finish(self) -> None:
        """All of it is here."""
        self._on_its_way = False
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def names(self, oid: Oid) -> bool:
        """Whether what is here names `oid` as part of history, and it is not here."""
        return oid in await trio.to_thread.run_sync(self._frontier.oids)

    async def until_here(self, oid: Oid) -> None:
        """Wait for `oid`, as long as it may come."""
        await self._until(partial(self._odb.contains, oid))

    async def _until(self, condition: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            with trio.move_on_after(LONGEST_S):
                while self._on_its_way:
                    changed = self._changed
                    if condition():
                        return
                    await changed.wait()
        finally:
            self._waiting -= 1

    async def until_resolvable(self, abbreviation: str) -> None:
        """Wait until what `abbreviation` (hex digits of an oid) means can be told.

        That is at once where it is long enough, and an object that is here begins with it.
        """
        if len(abbreviation) < _UNIQUE:
            await self._until(lambda: False)
        else:
            await self._until(partial(self._odb.has_prefix, abbreviation))
