"""Clients that keep a connection and do nothing with it, or give it up halfway."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from artifactfs.git.pack.format import encode_entry
from tests.e2e.processes import wait_until
from tests.server.git.test_git_faults import memory_mib, pkt, wait_until_no_children
from tests.server.running import Git, Server, ServerFactory, with_token

PUSH = pkt(f"{'0' * 40} {'1' * 40} refs/heads/x\0report-status")


@pytest.fixture
def impatient(start_server: ServerFactory) -> Iterator[Server]:
    server = start_server("--client-timeout", "5", "--max-git-processes", "1")
    yield server
    wait_until_no_children(server)


def ask(server: Server, head: str, token: str, body: bytes = b"", length: int = 1_000) -> bytes:
    """Send a request that announces more than it brings; all that comes until the end."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as sock:
        lines = [head, f"Host: {parts.netloc}", f"Content-Length: {length}"]
        sock.sendall(
            "\r\n".join([*lines, f"Authorization: Bearer {token}", "", ""]).encode() + body
        )
        answer = b""
        while data := sock.recv(65_536):
            answer += data
        return answer


def git_requests(server: Server) -> list[dict[str, Any]]:
    """Those with a body, that are over."""
    return [r for r in server.requests() if r["method"] == "POST" and "service" in r]


def git_head(name: str, service: str) -> str:
    kind = f"Content-Type: application/x-git-{service}-request"
    return f"POST /git/team/{name}.git/git-{service} HTTP/1.1\r\n{kind}"


def test_a_body_that_never_comes_is_a_408(impatient: Server) -> None:
    token = impatient.create("waits")["token"]
    form = "POST /ui/login HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded"
    rest = "POST /v1/api/namespaces/team/repos HTTP/1.1\r\nContent-Type: application/json"
    for head, secret, body in (
        (form, "", b"token="),
        (rest, impatient.api_token, b"{"),
        (git_head("waits", "upload-pack"), token, b"0014com"),
        (git_head("waits", "receive-pack"), token, PUSH[:20]),
        (git_head("waits", "receive-pack"), token, PUSH + b"0000PACK"),
    ):
        assert ask(impatient, head, secret, body).startswith(b"HTTP/1.1 408 "), head


def test_a_body_that_never_comes_is_recorded(impatient: Server) -> None:
    token = impatient.create("recorded")["token"]
    ask(impatient, git_head("recorded", "upload-pack"), token, b"0014com")
    ask(impatient, git_head("recorded", "receive-pack"), token, PUSH + b"0000PACK")
    slow = ("recorded", "the request arrives too slowly")
    wait_until(lambda: len(errors_of(impatient)) > 1, "them")
    assert errors_of(impatient) == [slow, slow]


def errors_of(server: Server) -> list[tuple[str, str]]:
    """Repository and message of each error that was recorded."""
    events = "SELECT repository, error_message FROM events WHERE kind = 'error' ORDER BY 1"
    database = server.installation.open_events()
    try:
        rows = database.read(lambda tx: tx.rows(events))
    finally:
        database.close()
    return [(row["repository"], row["error_message"]) for row in rows]


def test_a_trickle_is_a_408_as_well(impatient: Server, git: Git, work: Path) -> None:
    made = impatient.create("trickles")
    parts = urlsplit(impatient.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as sock:
        lines = [git_head("trickles", "receive-pack"), f"Host: {parts.netloc}"]
        lines += ["Content-Length: 1000000", f"Authorization: Bearer {made['token']}", "", ""]
        # The beginning of a file of 60,000 bytes that are not compressed.
        file = encode_entry(3, 60_000) + b"\x78\x01\x01" + struct.pack("<HH", 60_000, 5_535)
        pack = struct.pack(">4sLL", b"PACK", 2, 1) + file
        sock.sendall("\r\n".join(lines).encode() + PUSH + b"0000" + pack)
        while not (seen := git_requests(impatient)):
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"\0")
            time.sleep(0.2)
    assert [r["status"] for r in seen] == [408]
    # The one place for a git process is free again.
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)


def test_a_client_that_reads_nothing_is_left(impatient: Server, git: Git, work: Path) -> None:
    made = impatient.create("unread")
    (work / "big").write_bytes(os.urandom(20_000_000))
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Big", cwd=work)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    head = git("rev-parse", "main", cwd=work).strip()
    body = pkt(f"want {head} ofs-delta\n") + b"0000" + pkt("done\n")
    parts = urlsplit(impatient.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as sock:
        lines = [git_head("unread", "upload-pack"), f"Host: {parts.netloc}"]
        lines += [f"Content-Length: {len(body)}", f"Authorization: Bearer {made['token']}", "", ""]
        sock.sendall("\r\n".join(lines).encode() + body)
        while not any(r["service"] == "git-upload-pack" for r in git_requests(impatient)):
            time.sleep(0.1)
    git("ls-remote", with_token(made["remote"], made["token"]))
    assert memory_mib(impatient) < 300


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HTTP/1.1\r\nHos",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    ],
)
def test_a_connection_without_a_request_ends(impatient: Server, beginning: bytes) -> None:
    parts = urlsplit(impatient.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as sock:
        sock.sendall(beginning)
        while sock.recv(65_536):
            pass


def test_a_websocket_is_refused(server: Server) -> None:
    head = "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    assert ask(server, head, "", length=0).startswith(b"HTTP/1.1 403 ")


def test_connections_given_up_halfway_end_nothing_else(
    server: Server, git: Git, work: Path, name: str
) -> None:
    """One in ten of these made hypercorn write and close at the same time."""
    made = server.create(name)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    parts = urlsplit(server.url)
    assert server.process is not None

    def give_up(number: int) -> None:
        service = ("receive-pack", "upload-pack")[number % 2]
        lines = [git_head(name, service), f"Host: {parts.netloc}", "Content-Length: 5000"]
        lines += [f"Authorization: Bearer {made['token']}", "", ""]
        with socket.create_connection((parts.hostname, parts.port), timeout=120) as sock:
            sock.sendall("\r\n".join(lines).encode() + b"0003" + b"x" * 1_000)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while sock.recv(65_536):
                    pass

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(give_up, range(300)))
    assert server.process.poll() is None, server.errors()
    git("ls-remote", with_token(made["remote"], made["token"]))


def _large_file(server: Server, git: Git, tmp_path: Path) -> str:
    """The URL of a file that no socket buffer holds."""
    made = server.create("large")
    tree = tmp_path / "large"
    git("init", "-q", "-b", "main", tree)
    (tree / "file").write_bytes(os.urandom(1 << 20) * 24)
    git("add", ".", cwd=tree)
    git("commit", "-qm", "Large", cwd=tree)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=tree)
    return f"{server.url}/v1/api/namespaces/team/repos/large/raw/main/file"


def test_a_transfer_ends_after_sigterm(
    start_server: ServerFactory, git: Git, tmp_path: Path
) -> None:
    server = start_server()
    url = _large_file(server, git, tmp_path)
    token = {"Authorization": f"Bearer {server.api_token}"}
    assert server.process is not None
    with httpx.stream("GET", url, headers=token, timeout=60) as answer:
        pieces = answer.iter_raw(1 << 20)
        size = len(next(pieces))
        server.process.terminate()
        with pytest.raises(httpx.ConnectError):
            for _ in range(200):
                with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                    httpx.get(f"{server.url}/healthz", timeout=60)  # one may be in the backlog
                time.sleep(0.05)
        size += sum(len(piece) for piece in pieces)
    assert size == 24 << 20
    assert server.process.wait(60) == 0
    assert (server.data / "clean").exists()


def test_a_transfer_that_takes_too_long_is_ended_after_sigterm(
    start_server: ServerFactory, git: Git, tmp_path: Path
) -> None:
    server = start_server("--stop-timeout", "1")
    url = _large_file(server, git, tmp_path)
    token = {"Authorization": f"Bearer {server.api_token}"}
    assert server.process is not None
    with httpx.stream("GET", url, headers=token, timeout=60) as answer:
        pieces = answer.iter_raw(1 << 20)
        next(pieces)
        server.process.terminate()
        assert server.process.wait(60) == 0
        with pytest.raises(httpx.HTTPError):
            list(pieces)
