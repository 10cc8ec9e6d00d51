"""The circuit: when a remote counts as down, and how it comes back. The clock is trio's mock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from artifactfs.errors import AuthenticationFailed, ProtocolError, RemoteError, RemoteUnreachable
from artifactfs.hydration.errors import HydrationFailed
from artifactfs.hydration.link.connection import RemoteLink
from artifactfs.hydration.link.health import Outage, RemoteHealth


class Remote:
    """What the probe meets."""

    def __init__(self, credentials: Path, deadline_s: float = 60.0) -> None:
        self.error: RemoteError | None = None
        self.answers_after_s = 0.0
        self.probes: list[float] = []
        self.downs: list[Outage] = []
        self.ups = 0
        self.health = RemoteHealth(
            repo="r",
            deadline_s=deadline_s,
            credentials=credentials,
            probe=self.probe,
            on_down=self.downs.append,
            on_up=self.up,
        )

    def up(self) -> None:
        self.ups += 1

    async def probe(self) -> None:
        self.probes.append(trio.current_time())
        await trio.sleep(self.answers_after_s)
        if self.error is not None:
            raise self.error


def run(tmp_path: Path, body: Callable[[Remote], object]) -> None:
    async def main() -> None:
        remote = Remote(tmp_path / "credentials")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote.health.run)
            await body(remote)  # type: ignore[misc]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_failures_become_an_outage_only_after_a_while(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        health = remote.health
        remote.error = RemoteUnreachable("refused")
        health.note_failure(remote.error)
        await trio.sleep(10)
        health.note_failure(remote.error)
        assert health.up
        health.note_success()
        await trio.sleep(10)
        health.note_failure(remote.error)
        await trio.sleep(16)
        health.note_failure(remote.error)
        assert not health.up
        assert remote.downs[0].cause == "refused"
        with pytest.raises(HydrationFailed, match="the remote is down: refused"):
            await health.admit()

    run(tmp_path, body)


def test_a_failure_of_long_ago_does_not_count(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        remote.health.note_failure(RemoteUnreachable("a blip"))
        await trio.sleep(3_600)
        remote.health.note_failure(RemoteUnreachable("another"))
        assert remote.health.up
        await trio.sleep(20)
        remote.health.note_failure(RemoteUnreachable("still"))
        assert not remote.health.up

    run(tmp_path, body)


def test_the_probe_finds_out_by_itself_that_the_remote_is_back(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        remote.error = AuthenticationFailed("no")
        remote.health.note_failure(remote.error)
        assert not remote.health.up
        await trio.sleep(200)
        gaps = [b - a for a, b in zip(remote.probes, remote.probes[1:], strict=False)]
        assert gaps[-1] > 20  # the delay grows
        assert len(remote.probes) < 20
        remote.error = None
        await trio.sleep(40)
        assert remote.health.up
        assert remote.ups == 1

    run(tmp_path, body)


def test_a_reader_has_the_remote_probed_but_not_all_the_time(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        remote.error = AuthenticationFailed("no")
        remote.health.note_failure(remote.error)
        await trio.sleep(100)
        before = len(remote.probes)
        for _ in range(100):
            with pytest.raises(HydrationFailed):
                await remote.health.admit()
        assert len(remote.probes) == before + 1
        remote.error = None
        await trio.sleep(1)
        await remote.health.admit()
        assert remote.health.up

    run(tmp_path, body)


def unreachable(remote: Remote) -> None:
    """Let the remote be down because nobody reaches it."""
    remote.error = RemoteUnreachable("refused")
    remote.health.note_failure(remote.error)


@pytest.mark.parametrize("probe_s", [0.001, 0.2])
def test_the_first_reader_after_the_remote_is_back_is_served_however_soon(
    tmp_path: Path, probe_s: float
) -> None:
    async def body(remote: Remote) -> None:
        remote.answers_after_s = probe_s
        unreachable(remote)
        await trio.sleep(30)
        unreachable(remote)
        await trio.sleep(1)
        with pytest.raises(HydrationFailed):
            await remote.health.admit()
        remote.error = None
        await remote.health.admit()
        assert remote.health.up

    run(tmp_path, body)


def test_a_scan_of_absent_files_fails_fast(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        unreachable(remote)
        await trio.sleep(30)
        unreachable(remote)
        started = trio.current_time()
        for _ in range(1_000):
            with pytest.raises(HydrationFailed):
                await remote.health.admit()
        assert trio.current_time() - started < 2

    run(tmp_path, body)


def test_a_black_hole_costs_a_reader_two_seconds_and_the_next_nothing(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        remote.answers_after_s = 1_000
        remote.health.note_failure(AuthenticationFailed("no"))
        await trio.sleep(60)
        started = trio.current_time()
        with pytest.raises(HydrationFailed):
            await remote.health.admit()
        assert trio.current_time() - started <= 2.01

    run(tmp_path, body)


def test_changed_credentials_are_tried_at_once(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        remote.error = AuthenticationFailed("no")
        remote.health.note_failure(remote.error)
        await trio.sleep(0.2)
        with pytest.raises(HydrationFailed):
            await remote.health.admit()
        (tmp_path / "credentials").write_text("new")
        remote.error = None
        await remote.health.admit()

    run(tmp_path, body)


def test_nonsense_from_the_server_is_no_outage(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        for _ in range(10):
            remote.health.note_failure(ProtocolError("what?"))
            await trio.sleep(10)
        assert remote.health.up

    run(tmp_path, body)


def test_a_new_url_is_believed(tmp_path: Path) -> None:
    async def body(remote: Remote) -> None:
        remote.error = AuthenticationFailed("no")
        remote.health.note_failure(remote.error)
        remote.health.reset()
        await remote.health.admit()
        assert remote.ups == 1

    run(tmp_path, body)


def test_a_request_that_began_before_a_change_says_nothing_of_the_remote_after(
    tmp_path: Path,
) -> None:
    async def body(remote: Remote) -> None:
        health = remote.health
        epoch = health.epoch
        health.reset()
        health.note_failure(AuthenticationFailed("refused"), epoch=epoch)
        assert health.up
        epoch = health.epoch
        health.note_failure(AuthenticationFailed("refused"), epoch=epoch)
        assert not health.up
        health.note_success()
        health.note_failure(AuthenticationFailed("refused"), epoch=epoch)
        assert health.up

    run(tmp_path, body)


def test_a_connection_that_was_begun_before_a_change_is_not_kept() -> None:
    async def main() -> None:
        opened: list[Connection] = []
        go_on = trio.Event()

        async def connect() -> Connection:
            opened.append(Connection())
            await go_on.wait()
            return opened[-1]

        unused: Any = None
        link = RemoteLink(connect, unused)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.get)
            await trio.testing.wait_all_tasks_blocked()
            link.reset()
            go_on.set()
        assert [connection.closed for connection in opened] == [True, False]
        assert link.remote is opened[1]

    trio.run(main)


class Connection:
    """What `RemoteLink` closes."""

    closed = False

    async def aclose(self) -> None:
        self.closed = True
