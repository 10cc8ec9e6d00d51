"""Attempts at a gitdir, and what those are told who wait for it."""

from __future__ import annotations

from unittest.mock import Mock

import trio

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
    """Each fails when it is told to; the last one succeeds."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.begun = trio.Event()
        self.fail = trio.Event()
        self.reports: list[str] = []

    async def attempt(self) -> None:
        self.left -= 1
        if self.left:
            self.begun.set()
            await self.fail.wait()
            raise RemoteError("it is away")

    async def report(self, error: Exception) -> None:
        self.reports.append(str(error))


async def use(settings: Message) -> None:
    assert settings == {}


async def asked_during_an_attempt(entrance: Entrance, attempts: Attempts) -> None:
    preparation = Preparation(entrance, attempts.attempt, attempts.report, use)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(preparation.run)
            await attempts.begun.wait()
            await preparation.retry(Mock(args={"settings": {}}))
            attempts.fail.set()


def test_who_asks_during_an_attempt_is_not_told_of_its_failure() -> None:
    """Another one follows, for which people wait."""

    async def check() -> None:
        entrance, attempts = Entrance(), Attempts(2)
        await asked_during_an_attempt(entrance, attempts)
        assert attempts.left == 0
        assert entrance.told == ["waits"]
        assert attempts.reports == []

    trio.run(check)


def test_who_asked_before_is_told() -> None:
    async def check() -> None:
        entrance, attempts = Entrance(), Attempts(3)
        await asked_during_an_attempt(entrance, attempts)
        assert attempts.left == 0
        assert entrance.told == ["waits", "refused"]
        assert attempts.reports == ["it is away"]

    trio.run(check)
