"""Attempts at a gitdir, and what those are told who wait for it."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import trio
import trio.testing

from artifactfs.daemon.control.messages import Message
from artifactfs.daemon.worker.preparation import Preparation
from artifactfs.errors import RemoteError

DEADLINE_S = 30.0


class Entrance:
    """As those behind it see it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def refuse(self) -> None:
        self.told.append("refused")

    def wait_again(self) -> None:
        self.told.append("waits")


class Attempts:
    """So many: the last one succeeds, and those before fail when `fail` is set."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.entrance = Entrance()
        self.fail = trio.Event()
        self.reports: list[str] = []
        self.preparation = Preparation(self.entrance, self._attempt, self._report, self._use)
        self.fails_in_use = False
        """An attempt fails while the settings of who asks are taken over."""

    async def run(self) -> None:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.preparation.run)
                await trio.testing.wait_all_tasks_blocked()
                await self.preparation.retry(Mock(args={"settings": {}}))
                self.fail.set()

    async def _attempt(self) -> None:
        self.left -= 1
        if self.left:
            await self.fail.wait()
            raise RemoteError("it is away")

    async def _report(self, error: Exception) -> None:
        self.reports.append(str(error))

    async def _use(self, settings: Message) -> None:
        assert settings == {}
        if self.fails_in_use:
            self.fail.set()
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("fails_in_use", [False, True])
def test_who_asks_during_an_attempt_is_not_told_of_its_failure(fails_in_use: bool) -> None:
    """Another one follows, for which people wait. Asking itself may end the attempt."""

    async def check() -> None:
        attempts = Attempts(2)
        attempts.fails_in_use = fails_in_use
        await attempts.run()
        assert attempts.left == 0
        assert attempts.entrance.told == ["waits"]
        assert attempts.reports == []

    trio.run(check)


def test_the_next_failure_is_told() -> None:
    async def check() -> None:
        attempts = Attempts(3)
        await attempts.run()
        assert attempts.left == 0
        assert attempts.entrance.told == ["waits", "refused"]
        assert attempts.reports == ["it is away"]

    trio.run(check)
