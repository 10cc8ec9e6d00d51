"""The control protocol over a real socket: the daemon's server and the command line's client."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from artifactfs.daemon.control import client as client_module
from artifactfs.daemon.control import server as control
from artifactfs.daemon.control.client import ControlClient, DaemonNotRunning
from artifactfs.daemon.control.server import Command, ControlServer, Request
from artifactfs.errors import AuthenticationFailed, DaemonError, InvalidInput
from artifactfs.paths import StateLayout


async def echo(request: Request) -> Any:
    return request.args


async def count(request: Request) -> str:
    for done in range(3):
        await request.progress(done=done, total=3)
    return "counted"


async def refuse(_request: Request) -> None:
    raise AuthenticationFailed(
        "refused by https://user:secret@host/x.git", hint="use another token"
    )


async def break_down(_request: Request) -> None:
    raise ZeroDivisionError("a mistake")


COMMANDS: Mapping[str, Callable[[Request], Awaitable[Any]]] = {
    "echo": echo,
    "count": count,
    "refuse": refuse,
    "break": break_down,
}


@contextmanager
def serving(
    state: StateLayout, commands: Mapping[str, Callable[[Request], Awaitable[Any]]] = COMMANDS
) -> Iterator[None]:
    """Serve in a thread until the block ends."""
    ready = threading.Event()
    stop: Callable[[], None] = lambda: None  # noqa: E731

    async def run() -> None:
        nonlocal stop
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            stop = lambda: token.run_sync_soon(nursery.cancel_scope.cancel)  # noqa: E731
            table = {name: Command(handler, 20.0) for name, handler in commands.items()}
            await nursery.start(ControlServer(state.control_socket, table).run)
            ready.set()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        stop()
        thread.join(60)


@pytest.fixture
def state(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path)


def test_a_request_and_its_result(state: StateLayout) -> None:
    with serving(state), ControlClient(state) as client:
        assert client.request("echo", name="x", number=1) == {"name": "x", "number": 1}
        assert client.request("echo") == {}


def test_progress_comes_before_the_result(state: StateLayout) -> None:
    seen: list[dict[str, Any]] = []
    with serving(state), ControlClient(state) as client:
        assert client.request("count", on_progress=seen.append) == "counted"
    assert [message["done"] for message in seen] == [0, 1, 2]


def test_errors_keep_class_hint_and_exit_code_but_no_secret(state: StateLayout) -> None:
    with serving(state), ControlClient(state) as client:
        with pytest.raises(AuthenticationFailed) as caught:
            client.request("refuse")
        assert caught.value.hint == "use another token"
        assert "secret" not in caught.value.message
        with pytest.raises(InvalidInput, match="does not know"):
            client.request("nonsense")
        with pytest.raises(DaemonError, match="ZeroDivisionError"):
            client.request("break")
        assert client.request("echo") == {}, "one connection outlives errors"


def test_a_request_that_takes_long_is_kept_alive(
    state: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(client_module, "SILENCE_TIMEOUT_S", 3.0)

    async def dawdle(_request: Request) -> str:
        await trio.sleep(4.0)
        return "done"

    with serving(state, {"dawdle": dawdle}), ControlClient(state) as client:
        assert client.request("dawdle") == "done"


def test_a_client_that_goes_away_cancels_its_request(state: StateLayout) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def wait(_request: Request) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with serving(state, {"wait": wait}):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(state.control_socket))
        raw.sendall(b'{"id":1,"command":"wait","args":{}}\n')
        assert begun.wait(60)
        raw.close()
        assert cancelled.wait(60)


@pytest.mark.parametrize(
    "nonsense", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"\xff\n", b"[" * 200_000 + b"\n"]
)
def test_nonsense_ends_the_connection_and_not_the_server(
    state: StateLayout, nonsense: bytes
) -> None:
    with serving(state):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(state.control_socket))
        raw.sendall(nonsense)
        assert raw.recv(100) == b""
        raw.close()
        with ControlClient(state) as client:
            assert client.request("echo") == {}


def test_requests_of_one_connection_run_at_once(state: StateLayout) -> None:
    async def wait(request: Request) -> float:
        await trio.sleep(request.args["seconds"])
        return float(request.args["seconds"])

    with serving(state, {"wait": wait}):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(state.control_socket))
        for number, seconds in ((1, 5.0), (2, 0.0)):
            message = {"id": number, "command": "wait", "args": {"seconds": seconds}}
            raw.sendall(json.dumps(message).encode() + b"\n")
        first = json.loads(raw.makefile().readline())
        assert first["id"] == 2
        raw.close()


def test_only_the_owner_may_connect(state: StateLayout) -> None:
    with serving(state):
        mode = stat.S_IMODE(os.stat(state.control_socket).st_mode)
        assert mode == 0o600
    assert not state.control_socket.exists()


def test_a_long_path_works(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 30)
    root.mkdir()
    with serving(StateLayout(root)), ControlClient(StateLayout(root)) as client:
        assert client.request("echo") == {}


def test_no_daemon(state: StateLayout) -> None:
    with pytest.raises(DaemonNotRunning):
        ControlClient(state)
    leftover = socket.socket(socket.AF_UNIX)
    leftover.bind(str(state.control_socket))
    leftover.close()
    with pytest.raises(DaemonNotRunning):
        ControlClient(state)
