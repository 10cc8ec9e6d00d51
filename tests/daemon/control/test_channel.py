"""The supervisor's requests to a worker: clients that stall or leave harm nobody else's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from artifactfs.daemon.control import server as control
from artifactfs.daemon.control.channel import WorkerChannel
from artifactfs.daemon.control.messages import Message
from artifactfs.daemon.control.server import Command, LineStream, Request, serve_requests
from artifactfs.errors import DaemonError

Handler = Callable[[Request], Awaitable[Any]]


def connected(
    handlers: Mapping[str, Handler], body: Callable[[WorkerChannel], Awaitable[None]]
) -> None:
    """Run `body` with a channel whose other end answers as a worker does."""

    async def on_event(_message: Message) -> None: ...

    async def main() -> None:
        ours, theirs = trio.testing.lockstep_stream_pair()
        channel = WorkerChannel(ours)
        table = {name: Command(one, 60.0, cancellable=True) for name, one in handlers.items()}
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run, on_event)
                nursery.start_soon(serve_requests, LineStream(theirs), table)
                await body(channel)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def count(request: Request) -> str:
    for number in range(3):
        await request.progress(number=number)
    return "counted"


async def echo(request: Request) -> Message:
    return request.args


def test_progress_comes_before_the_result() -> None:
    async def body(channel: WorkerChannel) -> None:
        seen: list[object] = []

        async def note(**fields: object) -> None:
            seen.append(fields["number"])

        assert await channel.request("count", deadline_s=10, progress=note) == "counted"
        assert seen == [0, 1, 2]

    connected({"count": count}, body)


def test_a_client_that_is_gone_ends_its_request_alone() -> None:
    """Its progress cannot be sent: that is no reason to let go of the worker, which would end."""

    async def body(channel: WorkerChannel) -> None:
        async def gone(**_fields: object) -> None:
            raise DaemonError("the other side of the control connection is gone")

        with pytest.raises(DaemonError):
            await channel.request("count", deadline_s=10, progress=gone)
        assert not channel.closed.is_set()
        assert await channel.request("echo", {"x": 1}, deadline_s=10) == {"x": 1}

    connected({"count": count, "echo": echo}, body)


def test_a_client_that_stalls_holds_up_nobody_else() -> None:
    async def body(channel: WorkerChannel) -> None:
        stalled = trio.Event()

        async def stall(**_fields: object) -> None:
            stalled.set()
            await trio.sleep_forever()

        async def ask() -> None:
            await channel.request("count", deadline_s=60, progress=stall)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await stalled.wait()
            assert await channel.request("echo", {"x": 1}, deadline_s=10) == {"x": 1}
            nursery.cancel_scope.cancel()

    connected({"count": count, "echo": echo}, body)


def test_a_request_that_is_given_up_is_cancelled_in_the_worker() -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def wait(_request: Request) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def body(channel: WorkerChannel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: channel.request("wait", deadline_s=60))
            await begun.wait()
            nursery.cancel_scope.cancel()
        await cancelled.wait()
        assert await channel.request("echo", {"x": 1}, deadline_s=10) == {"x": 1}

    connected({"wait": wait, "echo": echo}, body)


def test_a_message_that_was_begun_is_sent_whole() -> None:
    """Whoever is cancelled meanwhile: what others send after it must be readable."""

    async def main() -> None:
        ours, theirs = trio.testing.lockstep_stream_pair()
        lines, other = LineStream(ours), LineStream(theirs)

        async def send_and_leave() -> None:
            with trio.move_on_after(0.05):  # nobody reads yet
                await lines.send({"number": 1})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_leave)
            await trio.sleep(0.1)
            nursery.start_soon(lines.send, {"number": 2})
            assert await other.receive() == {"number": 1}
            assert await other.receive() == {"number": 2}

    trio.run(main)


def test_nothing_follows_half_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SEND_TIMEOUT_S", 0.05)

    async def main() -> None:
        lines = LineStream(trio.testing.lockstep_stream_pair()[0])  # nobody reads
        for _ in range(2):
            with pytest.raises(DaemonError):
                await lines.send({"number": 1})

    trio.run(main)
