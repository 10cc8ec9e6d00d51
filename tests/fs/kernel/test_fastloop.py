"""The short way into pyfuse3: it must fit pyfuse3's internals, and be taken."""

from __future__ import annotations

import inspect
import os
import select
import socket
import subprocess
from types import ModuleType

import pyfuse3
import pytest
import trio

from artifactfs.fs.kernel import fastloop
from tests.fs.mounting import Mount


def test_pyfuse3_is_the_one_it_was_made_for() -> None:
    """When this fails, compare `_session_loop` and `_wait_fuse_readable` in pyfuse3's
    ``internal.pxi`` with what `fastloop` says of them."""
    wait = vars(pyfuse3)["_wait_fuse_readable"]
    assert "_session_loop" in vars(pyfuse3)
    assert inspect.iscoroutinefunction(wait) or "coroutine" in str(type(wait)).lower()
    assert list(inspect.signature(wait).parameters) == []
    assert pyfuse3.__version__.startswith("3.")


def test_a_mount_uses_it_and_goes_on_without(mount: Mount) -> None:
    assert mount.ask("fast")
    assert (mount.path / "README").read_text() == "hello\n"
    mount.ask("slow")
    assert not mount.ask("fast")
    assert (mount.path / "docs/a.txt").read_text() == "a\n"


def test_many_programs_at_once(mount: Mount) -> None:
    script = (
        "import os\nfor n in range(300): os.stat(f'many/{n:03}'); os.stat(f'absent{n}') if 0 else 0"
    )
    programs = [subprocess.Popen(["python3", "-c", script], cwd=mount.path) for _ in range(8)]
    assert [program.wait(60) for program in programs] == [0] * 8


def _fake_pyfuse3(calls: list[str], fd: int) -> ModuleType:
    module = ModuleType("fake")

    async def _wait_fuse_readable() -> bool:
        calls.append("waited")
        await trio.lowlevel.wait_readable(fd)
        return True

    module._session_loop = None  # type: ignore[attr-defined]
    module._wait_fuse_readable = _wait_fuse_readable  # type: ignore[attr-defined]
    return module


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting while there are requests, but other tasks get their turn."""
    monkeypatch.setattr(fastloop, "AT_ONCE_S", 600.0)
    here, there = socket.socketpair()
    calls: list[str] = []
    module = _fake_pyfuse3(calls, here.fileno())
    original = module._wait_fuse_readable
    assert fastloop.install(module, here.fileno())
    assert not fastloop.install(module, here.fileno())

    async def serve() -> None:
        there.send(b"x")
        for _ in range(fastloop.IN_A_ROW):
            assert await module._wait_fuse_readable()
        assert calls == []
        assert await module._wait_fuse_readable()
        assert calls == ["waited"]
        assert await module._wait_fuse_readable()
        assert calls == ["waited"]

    trio.run(serve)
    fastloop.remove(module)
    assert module._wait_fuse_readable is original


def test_few_requests_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension may have answered many others in each turn."""
    monkeypatch.setattr(fastloop, "AT_ONCE_S", 0.0)
    here, there = socket.socketpair()
    calls: list[str] = []
    module = _fake_pyfuse3(calls, here.fileno())
    assert fastloop.install(module, here.fileno())

    async def serve() -> None:
        there.send(b"x")
        for _ in range(3):
            assert await module._wait_fuse_readable()
        assert calls == ["waited"] * 3

    trio.run(serve)


def test_a_request_that_another_task_took() -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    calls: list[str] = []
    taken = []

    module = _fake_pyfuse3(calls, here.fileno())
    inner = module._wait_fuse_readable

    async def woken_too_late() -> bool:
        result: bool = await inner()
        if not taken:
            taken.append(here.recv(1))
            there.send(b"y")
        return result

    module._wait_fuse_readable = woken_too_late  # type: ignore[attr-defined]
    fastloop.install(module, here.fileno())

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(module._wait_fuse_readable)
            await trio.testing.wait_all_tasks_blocked()
            there.send(b"x")

    trio.run(serve)
    assert taken == [b"x"]
    assert select.select([here], [], [], 0)[0]


def test_the_end_is_passed_on() -> None:
    module = ModuleType("fake")

    async def ended() -> bool:
        return False

    module._session_loop = None  # type: ignore[attr-defined]
    module._wait_fuse_readable = ended  # type: ignore[attr-defined]
    read, write = os.pipe()
    fastloop.install(module, read)
    assert trio.run(module._wait_fuse_readable) is False
    os.close(read)
    os.close(write)


def test_another_pyfuse3_is_left_alone() -> None:
    module = ModuleType("fake")
    assert not fastloop.install(module, 0)
    assert not hasattr(module, "_wait_fuse_readable")


@pytest.mark.parametrize("cpus", [{0}, {0, 1}])
def test_patience_lasts_as_long_as_requests_come_late(
    monkeypatch: pytest.MonkeyPatch, cpus: set[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cpus)
    patience = fastloop.Patience(50)
    longer = range(fastloop.LONGER * 50) if len(cpus) > 1 else range(50)

    def until_it_is_longer() -> int:
        waits = 0
        while patience.attempts() == range(50) and waits < 100:
            patience.miss()
            waits += 1
        return waits

    assert patience.attempts() == range(50)
    assert until_it_is_longer() == (16 if len(cpus) > 1 else 100)  # then it tries once
    patience.miss()
    assert patience.attempts() == range(50)
    until_it_is_longer()
    for _ in range(100):
        patience.hit(60)
        assert patience.attempts() == longer
    waits = 0
    while patience.attempts() != range(50) and waits < 100:
        patience.miss()
        waits += 1
    assert waits == (8 if len(cpus) > 1 else 0)
    patience.hit(3)
    assert patience.attempts() == range(50)
