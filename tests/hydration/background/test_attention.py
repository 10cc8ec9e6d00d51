"""What counts as somebody who works in the mount."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable

import trio
import trio.testing

from artifactfs.hydration.background.attention import PATIENCE_S, PROCESS_S, SIGN_S, Attention


def run(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_signs_and_writes_count_for_a_while() -> None:
    async def body() -> None:
        changes = 0
        attention = Attention(lambda: changes)
        assert not attention.somebody_works()
        attention.note()
        assert attention.somebody_works()
        await trio.sleep(2 * SIGN_S)
        assert not attention.somebody_works()
        changes = 1
        assert attention.somebody_works()
        started = trio.current_time()
        await attention.pause(60)
        assert SIGN_S <= trio.current_time() - started < 1

    run(body)


def test_a_process_counts_until_it_ends_but_not_for_ever() -> None:
    process, slow = (subprocess.Popen(["sleep", "60"]) for _ in range(2))

    async def body() -> None:
        attention = Attention()
        attention.note_process(process.pid)
        await trio.sleep(PROCESS_S / 2)
        assert attention.somebody_works()
        process.kill()
        await trio.to_thread.run_sync(process.wait)
        await trio.sleep(2 * SIGN_S)
        assert not attention.somebody_works()
        attention.note_process(slow.pid)
        await trio.sleep(PROCESS_S + 1)
        assert not attention.somebody_works()

    run(body)
    slow.kill()
    slow.wait()


def test_who_never_pauses_does_not_stop_the_background_for_ever() -> None:
    async def body() -> None:
        attention = Attention()
        started = trio.current_time()
        while trio.current_time() < started + PATIENCE_S:
            attention.note()
            assert attention.somebody_works()
            await trio.sleep(SIGN_S / 2)
        attention.note()
        await trio.sleep(SIGN_S / 2)
        attention.note()
        assert not attention.somebody_works()
        await trio.sleep(2 * SIGN_S)
        attention.note()
        assert attention.somebody_works()

    run(body)


def test_a_directory_that_is_listed_again_and_again_counts_once() -> None:
    async def body() -> None:
        attention = Attention()
        attention.note_listing(b"a")
        assert attention.somebody_works()
        await trio.sleep(2 * SIGN_S)
        for _ in range(5):
            attention.note_listing(b"a")
            assert not attention.somebody_works()
            await trio.sleep(SIGN_S / 2)
        attention.note_listing(b"b")
        assert attention.somebody_works()

    run(body)
