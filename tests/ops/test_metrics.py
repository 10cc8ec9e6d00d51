"""Prometheus metrics of a daemon, and the limit of its cache."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trio

from artifactfs.daemon.supervisor.metrics import (
    MetricsAddress,
    parse_address,
    render,
    serve_metrics,
)
from artifactfs.errors import InvalidInput, StateError
from tests.e2e.processes import DaemonProcess, ServedRepository, on_free_port, wait_until

SAMPLE = re.compile(r'(artifactfs_[a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def figures(text: str) -> dict[tuple[str, str], float]:
    """Every sample by name and labels; checks that each line is one, with its TYPE before it."""
    found: dict[tuple[str, str], float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert kind in ("gauge", "counter") and name not in typed
            assert (kind == "counter") == name.endswith("_total")
            typed.add(name)
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] in typed
            found[match[1], match[2] or ""] = float(match[3])
    return found


def test_metrics_over_tcp(
    idle_daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    port = on_free_port(lambda port: idle_daemon.start("--metrics", f"127.0.0.1:{port}"))
    address = f"127.0.0.1:{port}"
    mount = idle_daemon.add_repo("odd", remote_repo().url)
    idle_daemon.wait_for("odd", "index")
    (mount / "README.md").read_bytes()
    (mount / "local").write_bytes(b"x" * 1000)
    answer = httpx.get(f"http://{address}/metrics", timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = figures(answer.text)
    odd = 'repo="odd"'
    assert found["artifactfs_mount_state", f'{odd},state="mounted"'] == 1
    assert found["artifactfs_mount_state", f'{odd},state="failed"'] == 0
    assert found["artifactfs_overlay_files", odd] == 1
    assert found["artifactfs_overlay_bytes", odd] == 1000
    assert found["artifactfs_requests_total", odd] >= 1
    assert found["artifactfs_worker_resident_bytes", odd] > 1 << 20
    assert found["artifactfs_remote_up", odd] == 1
    assert httpx.get(f"http://{address}/", timeout=60).status_code == 404
    assert httpx.post(f"http://{address}/metrics", timeout=60).status_code == 405
    assert httpx.head(f"http://{address}/metrics", timeout=60).text == ""


def test_metrics_on_a_unix_socket(idle_daemon: DaemonProcess) -> None:
    path = idle_daemon.directory / "metrics.sock"
    idle_daemon.start("--metrics", str(path))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
        found = figures(client.get("http://daemon/metrics").text)
    assert found["artifactfs_uptime_seconds", ""] > 0
    assert path.stat().st_mode & 0o007 == 0
    idle_daemon.stop()
    assert not path.exists()


def test_garbage_does_not_hurt(idle_daemon: DaemonProcess) -> None:
    port = on_free_port(lambda port: idle_daemon.start("--metrics", f":{port}"))
    for garbage in (b"\x16\x03\x01\x00", b"GET\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(garbage)
    assert httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).status_code == 200


@pytest.mark.parametrize("mistake", [StateError("the registry cannot be read"), KeyError("state")])
def test_figures_that_cannot_be_had_end_nothing(mistake: Exception) -> None:
    async def collect() -> str:
        raise mistake

    async def main() -> None:
        address = MetricsAddress(host="127.0.0.1", port=0)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                port = await nursery.start(serve_metrics, address, collect)
                for _ in range(2):
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                    await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = await stream.receive_some()
                    assert not answer or answer.startswith(b"HTTP/1.1 503")
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_taken_port_is_an_error_of_one_line(idle_daemon: DaemonProcess) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = idle_daemon.run(
            "daemon", "--metrics", f"127.0.0.1:{taken.getsockname()[1]}", check=False
        )
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == "error: cannot serve metrics: Address already in use"
    assert "Traceback" not in refused.stderr


def test_labels_are_escaped() -> None:
    text = render([{"name": 'a"b\\c', "state": "mounted"}], {"uptime_s": 1.5, "free_bytes": 2})
    assert 'repo="a\\"b\\\\c"' in text
    figures(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9469", MetricsAddress(host="127.0.0.1", port=9469)),
        (":9469", MetricsAddress(host="127.0.0.1", port=9469)),
        ("[::1]:9469", MetricsAddress(host="::1", port=9469)),
        ("/run/metrics.sock", MetricsAddress(path=Path("/run/metrics.sock"))),
    ],
)
def test_addresses(text: str, address: MetricsAddress) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "9469", "host:", "host:http", "host:70000"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_address(text)


LIMIT = 4 << 20


@pytest.mark.long
@pytest.mark.timeout(180)
def test_the_cache_keeps_its_limit(
    idle_daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    bulky: tuple[Path, dict[str, str]],
) -> None:
    """Reads of ten times the limit; every byte right, and in the end no more than the limit, and
    the status says so."""
    source, digests = bulky
    idle_daemon.start("--cache-limit", str(LIMIT))
    mount = idle_daemon.add_repo("bulky", remote_repo(source).url)
    most = 0
    for name, digest in digests.items():
        assert hashlib.sha256((mount / name).read_bytes()).hexdigest() == digest
        most = max(most, cache_bytes(idle_daemon))
    wait_until(lambda: cache_bytes(idle_daemon) <= LIMIT, "the limit")
    wait_until(
        lambda: idle_daemon.status("bulky")["hydration"]["bytes_here"] <= LIMIT,
        "the status",
        deadline=30,
    )
    print(f"limit {LIMIT >> 20} MiB, most {most >> 20} MiB while reading {len(digests)} MiB")
    assert (mount / next(iter(digests))).stat().st_size == 1 << 20


def cache_bytes(daemon: DaemonProcess) -> int:
    total = 0
    for path in (daemon.state / "cache").rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and "sizes" not in path.name else 0
        except FileNotFoundError:
            continue  # just evicted
    return total
