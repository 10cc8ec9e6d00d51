"""Figures of the daemon for Prometheus, over HTTP on a Unix socket or a TCP port.

The text is prometheus_client's, HTTP is h11's. One figure has one name and one unit everywhere:
seconds, bytes, or a count (`_total`). Repositories are labels; paths and remotes are not: each
would be a series, and tell too much.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import trio
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.registry import Collector

from artifactfs import __version__
from artifactfs.daemon.control.messages import Message, socket_address
from artifactfs.errors import ArtifactFSError, DaemonError, InvalidInput
from artifactfs.system.processes import resident_bytes

log = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 10.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STATES = ("starting", "cloning", "mounting", "mounted", "restarting", "failed", "unmounted")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where to listen: `path` is a Unix socket, else `host` and `port`."""

    path: Path | None = None
    host: str = ""
    port: int = 0


def parse_address(text: str) -> MetricsAddress:
    """``/a/path`` or ``HOST:PORT`` (``:PORT`` is the loopback). Raises: InvalidInput."""
    if "/" in text:
        return MetricsAddress(path=Path(text).absolute())
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput(f"{text!r} is neither a path nor HOST:PORT")
    return MetricsAddress(host=host.strip("[]") or "127.0.0.1", port=int(port))


# -- the figures -----------------------------------------------------------------------------

Labels = Mapping[str, str]
Value = tuple[Labels, float]
Kind = type[Gauge] | type[Counter]


@dataclass(frozen=True, slots=True, eq=False)
class Figures(Collector):
    """The figures of `repos` (as ``status`` answers them) and of the daemon, at one moment."""

    repos: list[Message]
    daemon: Message

    def collect(self) -> Iterator[Metric]:
        for name, kind, what, values in _families(self.repos, self.daemon):
            labels = tuple(values[0][0]) if values else ()
            family = kind(f"artifactfs_{name}", what, labels=labels)
            for label_values, value in values:
                family.add_metric([label_values[label] for label in labels], value)
            yield family


def render(repos: Iterable[Message], daemon: Message) -> str:
    """`Figures` in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures(list(repos), daemon))
    return generate_latest(registry).decode()


def _families(
    repos: list[Message], daemon: Message
) -> Iterator[tuple[str, Kind, str, list[Value]]]:
    yield "build_info", Gauge, "Always 1.", [({"version": __version__}, 1)]
    yield (
        "uptime_seconds",
        Gauge,
        "Since the daemon started.",
        [({}, daemon["uptime_s"])],
    )
    yield (
        "state_free_bytes",
        Gauge,
        "Free on the file system of the state root.",
        [({}, daemon["free_bytes"])],
    )
    yield (
        "mount_state",
        Gauge,
        "1 for the state that each repository is in.",
        [
            ({"repo": repo["name"], "state": state}, float(repo["state"] == state))
            for repo in repos
            for state in (*_STATES, "not answering")
        ],
    )
    for name, kind, what, path in _SIMPLE:
        yield name, kind, what, _each(repos, path)
    yield (
        "fetches_total",
        Counter,
        "Requests for contents, by what they were made for.",
        _by_key(repos, ("hydration", "requests_by_reason"), "reason"),
    )
    yield (
        "kernel_requests_total",
        Counter,
        "Requests of the kernel, by operation. What it has cached it does not ask for.",
        _by_key(repos, ("kernel", "requests"), "operation"),
    )
    yield (
        "queue_blobs",
        Gauge,
        "Contents waiting to be fetched, by priority.",
        _by_key(repos, ("hydration", "queue"), "priority"),
    )
    yield (
        "waiting_readers",
        Gauge,
        "Programs that wait for contents.",
        [
            ({"repo": repo["name"]}, float(len(repo["hydration"]["readers"])))
            for repo in repos
            if "hydration" in repo
        ],
    )
    yield (
        "longest_wait_seconds",
        Gauge,
        "How long the one that waits for the longest time has waited.",
        [
            (
                {"repo": repo["name"]},
                max((reader["age_s"] for reader in repo["hydration"]["readers"]), default=0.0),
            )
            for repo in repos
            if "hydration" in repo
        ],
    )
    yield (
        "remote_up",
        Gauge,
        "0 while the remote is known to be down.",
        [
            ({"repo": repo["name"]}, float(repo["hydration"]["remote"] != "down"))
            for repo in repos
            if "hydration" in repo
        ],
    )
    yield (
        "worker_resident_bytes",
        Gauge,
        "Resident memory of the mount's process, shared pages included.",
        [
            ({"repo": repo["name"]}, float(resident))
            for repo in repos
            if (resident := resident_bytes(repo.get("pid")))
        ],
    )


_SIMPLE: tuple[tuple[str, Kind, str, tuple[str, ...]], ...] = (
    (
        "mount_restarts_total",
        Counter,
        "Times the mount's process was replaced.",
        ("restarts",),
    ),
    (
        "blobs_here",
        Gauge,
        "Distinct contents of the tree, here.",
        ("hydration", "blobs_here"),
    ),
    ("blobs", Gauge, "Distinct contents of the tree.", ("hydration", "blobs_total")),
    ("bytes_here", Gauge, "Bytes of them that are here.", ("hydration", "bytes_here")),
    ("bytes", Gauge, "Bytes of them, as far as known.", ("hydration", "bytes_total")),
    (
        "received_blobs_total",
        Counter,
        "Contents received.",
        ("hydration", "blobs_received"),
    ),
    (
        "received_bytes_total",
        Counter,
        "Bytes received.",
        ("hydration", "received_bytes"),
    ),
    ("requests_total", Counter, "Requests for contents.", ("hydration", "requests")),
    ("failures_total", Counter, "Requests that failed.", ("hydration", "failures")),
    (
        "reads_here_total",
        Counter,
        "Contents asked for, here.",
        ("hydration", "reads_here"),
    ),
    (
        "reads_waited_total",
        Counter,
        "Contents waited for.",
        ("hydration", "reads_waited"),
    ),
    ("in_flight_requests", Gauge, "Requests under way.", ("hydration", "in_flight")),
    (
        "memory_cache_bytes",
        Gauge,
        "Contents held in memory.",
        ("hydration", "memory_bytes"),
    ),
    ("overlay_files", Gauge, "Files with local data.", ("overlay", "dirty_files")),
    ("overlay_bytes", Gauge, "Bytes of local data.", ("overlay", "dirty_bytes")),
    ("ahead_commits", Gauge, "Commits that only the branch here has.", ("ahead",)),
    ("behind_commits", Gauge, "Commits that only the upstream has.", ("behind",)),
    (
        "history_complete",
        Gauge,
        "1: git log needs the remote no more.",
        ("history_complete",),
    ),
    (
        "last_fetch_ok",
        Gauge,
        "1: the last background fetch succeeded.",
        ("last_fetch", "ok"),
    ),
    ("last_fetch_timestamp_seconds", Gauge, "When that was.", ("last_fetch", "time")),
)


def _each(repos: list[Message], path: tuple[str, ...]) -> list[Value]:
    """The figure at `path` of every repository that has one."""
    values: list[Value] = []
    for repo in repos:
        found: Any = repo
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, (int, float)):
            values.append(({"repo": repo["name"]}, float(found)))
    return values


def _by_key(repos: list[Message], path: tuple[str, str], label: str) -> list[Value]:
    return [
        ({"repo": repo["name"], label: key}, float(value))
        for repo in repos
        for key, value in (repo.get(path[0]) or {}).get(path[1], {}).items()
    ]


# -- HTTP ------------------------------------------------------------------------------------

Collect = Callable[[], Awaitable[str]]


async def serve_metrics(
    address: MetricsAddress,
    collect: Collect,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer ``GET /metrics`` until cancelled; started with the port (0 for a Unix socket).

    Raises: DaemonError when it cannot listen.
    """
    try:
        listener = trio.SocketListener(_listen(address))
    except OSError as error:
        raise DaemonError(f"cannot serve metrics: {error.strerror or error}") from error
    bound = listener.socket.getsockname()

    async def handle(stream: trio.SocketStream) -> None:
        with trio.move_on_after(REQUEST_DEADLINE_S):
            try:
                await _answer(stream, collect)
            except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
                log.debug("a reader of the metrics is gone: %s", error)
            except Exception as error:
                log.error("serving metrics failed", exc_info=error)

    try:
        async with trio.open_nursery() as nursery:
            task_status.started(0 if address.path else int(bound[1]))
            await trio.serve_listeners(handle, [listener], handler_nursery=nursery)
    finally:
        if address.path:
            address.path.unlink(missing_ok=True)


def _listen(address: MetricsAddress) -> trio.socket.SocketType:
    if address.path is not None:
        address.path.unlink(missing_ok=True)
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with socket_address(address.path) as name:
            raw.bind(name)
        os.chmod(address.path, 0o660)
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        raw = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.bind((address.host, address.port))
    raw.listen(16)
    raw.setblocking(False)
    return trio.socket.from_stdlib_socket(raw)


async def _collected(collect: Collect) -> tuple[int, str]:
    """Figures that cannot be had are no reason to end the daemon."""
    try:
        return 200, await collect()
    except (ArtifactFSError, OSError) as error:
        log.warning("no metrics: %s", error)
        return 503, "see the daemon's log\n"


async def _answer(stream: trio.SocketStream, collect: Collect) -> None:
    connection = h11.Connection(h11.SERVER)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some(65536))
    if not isinstance(event, h11.Request):
        return
    path = event.target.partition(b"?")[0]
    status, body = 404, "see /metrics\n"
    if event.method not in (b"GET", b"HEAD"):
        status, body = 405, "only GET\n"
    elif path == b"/metrics":
        status, body = await _collected(collect)
    content = body.encode()
    headers = [
        ("Content-Type", CONTENT_TYPE),
        ("Content-Length", str(len(content))),
        ("Connection", "close"),
    ]
    answer = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    if event.method != b"HEAD":
        answer += connection.send(h11.Data(data=content)) or b""
    await stream.send_all(answer)
    await stream.send_eof()
