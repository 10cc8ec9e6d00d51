"""Clients that misbehave: broken pkt-lines, cut packs, bombs, hang-ups, stalls, limits."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import os
import random
import resource
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.running import Git, Server, ServerFactory, with_token


def pkt(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return b"%04x" % (len(data) + 4) + data


def children(server: Server) -> list[str]:
    """Command lines of the processes that the server started and that still run."""
    assert server.process is not None
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(server.process.pid):
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return [line for line in found if "git" in line]


def wait_until_no_children(server: Server) -> None:
    deadline = time.monotonic() + 90
    while children(server):
        assert time.monotonic() < deadline, children(server)
        time.sleep(0.05)


def memory_mib(server: Server) -> float:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Endpoint:
    """A repository with something in it, spoken to by hand."""

    def __init__(self, server: Server, git: Git, work: Path, name: str) -> None:
        made = server.create(name)
        self.server = server
        self.remote = made["remote"]
        self.url = with_token(made["remote"], made["token"])
        self.token = made["token"]
        (self.gitdir,) = server.data.glob(f"repos/*/{made['id']}.git")
        git("push", "-q", self.url, "main", cwd=work)
        self.head = git("rev-parse", "main", cwd=work).strip()

    def headers(self, service: str, version: int = 2) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": f"application/x-git-{service}-request",
            "Git-Protocol": f"version={version}",
        }

    def post(self, service: str, body: bytes, version: int = 2, **extra: str) -> httpx.Response:
        return httpx.post(
            f"{self.remote}/git-{service}",
            content=body,
            headers={**self.headers(service, version), **extra},
            timeout=30,
        )


@pytest.fixture
def endpoint(server: Server, git: Git, work: Path, name: str) -> Iterator[Endpoint]:
    found = Endpoint(server, git, work, name)
    yield found
    wait_until_no_children(server)
    git("ls-remote", found.url)


BROKEN = [
    b"",
    b"zzzz",
    b"0003",
    b"ffff",
    b"00",
    b"-001",
    b"+00a",
    b"0x0a",
    b"0010",
    b"0032want xyz\n",
    pkt("command=fetch\n") + b"0001" + pkt("want 0123\n") + b"0000",
    pkt("command=fetch\n") + b"0001" + pkt("want " + "0" * 40 + "\n"),
    pkt("command=nonsense\n") + b"0000",
    pkt("command=fetch\n") + pkt("object-format=sha256") + b"0001" + b"0000",
    b"\x00" * 100,
    b"GET / HTTP/1.1\r\n\r\n",
]


def test_broken_requests_are_4xx_or_a_git_error(endpoint: Endpoint) -> None:
    for body, service, version in itertools.product(
        BROKEN, ("upload-pack", "receive-pack"), (0, 2)
    ):
        answer = endpoint.post(service, body, version)
        assert answer.status_code < 500, (body, service, version, answer.text)
        if answer.status_code == 200:
            assert not answer.content or b"ERR" in answer.content or body == b""


def test_random_bytes(endpoint: Endpoint) -> None:
    random.seed(7)
    good = pkt("command=fetch\n") + b"0001" + pkt(f"want {endpoint.head}\n") + pkt("done\n")
    good += b"0000"
    for _ in range(60):
        body = bytearray(good)
        for _ in range(random.randint(1, 6)):
            body[random.randrange(len(body))] = random.randrange(256)
        service = random.choice(["upload-pack", "receive-pack"])
        answer = endpoint.post(service, bytes(body), random.choice([0, 1, 2]))
        assert answer.status_code < 500, (bytes(body), answer.text)


def test_headers_are_checked(endpoint: Endpoint) -> None:
    body = pkt("command=ls-refs\n") + b"0000"
    for value in ("version=2\tx", "version=2;rm -rf", "$(id)", "x" * 300):
        answer = endpoint.post("upload-pack", body, **{"Git-Protocol": value})
        assert answer.status_code == 400
    assert endpoint.post("upload-pack", body, **{"Content-Type": "text/html"}).status_code == 415
    assert endpoint.post("upload-pack", body, **{"Content-Encoding": "br"}).status_code == 415
    assert endpoint.post("upload-pack", body, **{"X-Big": "x" * 100_000}).status_code in (400, 431)
    broken = endpoint.post("upload-pack", b"not gzip", **{"Content-Encoding": "gzip"})
    assert broken.status_code == 400
    cut = gzip.compress(body)[:-9]
    assert endpoint.post("upload-pack", cut, **{"Content-Encoding": "gzip"}).status_code == 400
    whole = endpoint.post("upload-pack", gzip.compress(body), **{"Content-Encoding": "gzip"})
    assert whole.status_code == 200 and endpoint.head.encode() in whole.content


def test_a_compressed_bomb_is_stopped(endpoint: Endpoint) -> None:
    before = memory_mib(endpoint.server)
    line = pkt("have " + "0" * 40 + "\n")
    bomb = gzip.compress(pkt("command=fetch\n") + b"0001" + line * 1_600_000, 1)
    assert len(bomb) < 3_000_000
    answer = endpoint.post("upload-pack", bomb, **{"Content-Encoding": "gzip"})
    assert answer.status_code in (400, 413)
    assert memory_mib(endpoint.server) - before < 60


def test_a_push_of_endless_refs_is_stopped(endpoint: Endpoint) -> None:
    before = memory_mib(endpoint.server)
    oids = f"{'0' * 40} {endpoint.head}"
    body = b"".join(pkt(f"{oids} refs/heads/{n}-{'x' * 60_000}") for n in range(400))
    answer = endpoint.post("receive-pack", body, 0)
    assert (answer.status_code, answer.text) == (400, "the push names too many refs\n")
    assert memory_mib(endpoint.server) - before < 60


def test_cut_and_damaged_packs_leave_nothing(endpoint: Endpoint, git: Git, work: Path) -> None:
    (work / "data").write_bytes(os.urandom(50_000))
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Data", cwd=work)
    tip = git("rev-parse", "main", cwd=work).strip()
    revisions = f"{tip}\n^{endpoint.head}\n"
    pack = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "-q"],
        input=revisions.encode(),
        cwd=work,
        capture_output=True,
        check=True,
    ).stdout
    command = f"{endpoint.head} {tip} refs/heads/main\0 report-status side-band-64k agent=test"
    start = pkt(command) + b"0000"
    damaged = bytearray(pack)
    damaged[len(pack) // 2] ^= 0xFF
    stored = endpoint.gitdir
    before = sorted(stored.rglob("*.pack"))
    for body in (pack[:-1_000], pack[:100], b"", bytes(damaged), b"PACK" + b"\xff" * 50):
        answer = endpoint.post("receive-pack", start + body, 0)
        assert answer.status_code < 500
        assert b"unpack ok" not in answer.content
        assert (
            endpoint.head.encode()
            in httpx.get(
                f"{endpoint.remote}/info/refs?service=git-receive-pack",
                headers=endpoint.headers("receive-pack", 0),
                timeout=60,
            ).content
        )
    assert sorted(stored.rglob("*.pack")) == before
    assert not list(stored.rglob("tmp_*"))
    good = endpoint.post("receive-pack", start + pack, 0)
    assert b"unpack ok" in good.content and b"ok refs/heads/main" in good.content


BAD_REFS = [
    *["refs/heads/../../config", "a.lock", "refs/heads/a..b", "config", "../x", "refs/x\ny"],
    *["HEAD.lock", "refs/heads/", "refs/heads/x.lock", "/etc/passwd"],
]


def test_bad_ref_names_are_refused(endpoint: Endpoint) -> None:
    empty_pack = bytes.fromhex("5041434b0000000200000000029d08823bd8a8eab510ad6ac75c823cfd3ed31e")
    for ref in BAD_REFS:
        command = f"{'0' * 40} {endpoint.head} {ref}\0 report-status agent=test"
        answer = endpoint.post("receive-pack", pkt(command) + b"0000" + empty_pack, 0)
        assert answer.status_code < 500 and b"ok " + ref.encode() not in answer.content, ref
    assert (endpoint.server.data / "gitconfig").exists()


def test_a_refused_ref_of_any_bytes_is_an_event(
    start_server: ServerFactory, git: Git, work: Path
) -> None:
    """Its name comes back in the reason; one that is not UTF-8 ended the server."""
    server = start_server()
    found = Endpoint(server, git, work, "bytes")
    names = [b"refs/heads/a \xff\xfe", b"refs/heads/\xff..", b"refs/heads/\xff" + b"x" * 2_000]
    for ref in names:
        command = b"%s %s %s\0report-status" % (b"0" * 40, found.head.encode(), ref)
        answer = found.post("receive-pack", pkt(command) + b"0000" + make_pack(), 0)
        assert answer.status_code < 500
    query = "{viewer{accounts{artifactsEventsAdaptiveGroups{count dimensions{errorMessage}}}}}"
    with server.client() as client:
        body = client.post("/client/v4/graphql", json={"query": query}).json()
    rows = body["data"]["viewer"]["accounts"][0]["artifactsEventsAdaptiveGroups"]
    messages = [row["dimensions"]["errorMessage"] for row in rows]
    assert any(messages) and all(len(message) <= 500 for message in messages)
    git("ls-remote", found.url)


def raw_request(endpoint: Endpoint, service: str, body: bytes, length: int | None) -> socket.socket:
    """Send a request by hand; without a length it is chunked and never ended."""
    parts = urlsplit(endpoint.remote)
    sock = socket.create_connection((parts.hostname, parts.port), timeout=20)
    head = [f"POST {parts.path}/git-{service} HTTP/1.1", f"Host: {parts.netloc}"]
    head += [f"{key}: {value}" for key, value in endpoint.headers(service, 0).items()]
    framed = body
    if length is None:
        head.append("Transfer-Encoding: chunked")
        framed = b"%x\r\n%s\r\n" % (len(body), body)
    else:
        head.append(f"Content-Length: {length}")
    sock.sendall("\r\n".join([*head, "", ""]).encode() + framed)
    return sock


def wait_for_child(server: Server, words: str) -> None:
    deadline = time.monotonic() + 90
    while not any(words in line for line in children(server)):
        assert time.monotonic() < deadline, children(server)
        time.sleep(0.02)


def test_a_client_that_goes_away_ends_the_git_process(endpoint: Endpoint) -> None:
    command = f"{'0' * 40} {endpoint.head} refs/heads/x\0 report-status side-band-64k agent=t"
    for length in (10_000_000, None):
        body = pkt(command) + b"0000" + b"PACK\0\0\0\2\0\0\xff\xff"
        sock = raw_request(endpoint, "receive-pack", body, length)
        wait_for_child(endpoint.server, "receive-pack")
        sock.close()
        wait_until_no_children(endpoint.server)
    assert not list(endpoint.gitdir.rglob("tmp_objdir-*"))


def test_a_client_that_leaves_a_fetch_ends_it(endpoint: Endpoint, git: Git, work: Path) -> None:
    (work / "big").write_bytes(os.urandom(30_000_000))
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Big", cwd=work)
    git("push", "-q", endpoint.url, "main", cwd=work)
    tip = git("rev-parse", "main", cwd=work).strip()
    body = pkt(f"want {tip} ofs-delta\n") + b"0000" + pkt("done\n")
    sock = raw_request(endpoint, "upload-pack", body, len(body))
    wait_for_child(endpoint.server, "upload-pack")
    sock.close()
    wait_until_no_children(endpoint.server)


def test_a_client_that_stops_reading_is_cut_off(
    start_server: ServerFactory, git: Git, work: Path
) -> None:
    server = start_server("--max-git-processes", "1")
    (work / "big").write_bytes(os.urandom(30_000_000))
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Big", cwd=work)
    found = Endpoint(server, git, work, "stalled")
    server.stop()
    server.options += ["--git-time-limit", "2.5"]  # too short for that push on a busy machine
    server.start()
    body = pkt(f"want {found.head} ofs-delta\n") + b"0000" + pkt("done\n")
    sock = raw_request(found, "upload-pack", body, len(body))
    wait_for_child(server, "upload-pack")
    # Nothing is read here; the one place for git must come free again.
    wait_until_no_children(server)
    git("ls-remote", found.url)
    sock.close()


def obj(kind: int, data: bytes, base: bytes = b"") -> bytes:
    """An object of a pack (gitformat-pack(5)); `base`: raw oid for a delta."""
    size, first = len(data) >> 4, kind << 4 | len(data) & 15
    head = bytearray()
    while size:
        head.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    return bytes([*head, first]) + base + zlib.compress(data)


def make_pack(*objects: bytes) -> bytes:
    body = b"PACK" + struct.pack(">II", 2, len(objects)) + b"".join(objects)
    return body + hashlib.sha1(body).digest()


def test_a_delta_that_stands_for_a_gigabyte(
    start_server: ServerFactory, git: Git, work: Path
) -> None:
    server = start_server("--max-git-memory", str(100 * 2**20))
    found = Endpoint(server, git, work, "bomb")
    base = bytes(8 * 2**20)
    oid = hashlib.sha1(b"blob %d\0" % len(base) + base).digest()
    copies, step = 130, 0x7FFF00
    sizes = b"".join(
        bytes(
            [n & 127 | 128, n >> 7 & 127 | 128, n >> 14 & 127 | 128, n >> 21 & 127 | 128, n >> 28]
        )
        for n in (len(base), copies * step)
    )
    delta = sizes + bytes([0x80 | 0x20 | 0x40, step >> 8 & 255, step >> 16]) * copies
    pack = make_pack(obj(3, base), obj(7, delta, oid))
    assert len(pack) < 20_000
    command = pkt(f"{'0' * 40} {found.head} refs/heads/x\0 report-status") + b"0000"
    answer = found.post("receive-pack", command + pack, 0)
    assert answer.status_code == 200 and b"ng refs/heads/x unpacker error" in answer.content
    wait_until_no_children(server)
    git("ls-remote", found.url)


def test_replace_refs_do_not_fool_the_check_of_a_push(
    endpoint: Endpoint, git: Git, work: Path
) -> None:
    """A commit whose parent is missing, behind a ref that says: read another one instead."""
    git("commit", "-q", "--allow-empty", "-m", "Absent", cwd=work)
    git("commit", "-q", "--allow-empty", "-m", "Top", cwd=work)
    top = git("rev-parse", "main", cwd=work).strip()
    data = git("cat-file", "commit", top, cwd=work).encode()
    git("push", "-q", endpoint.url, f"{endpoint.head}:refs/replace/{top}", cwd=work)
    command = pkt(f"{'0' * 40} {top} refs/heads/x\0 report-status") + b"0000"
    answer = endpoint.post("receive-pack", command + make_pack(obj(1, data)), 0)
    assert b"ng refs/heads/x" in answer.content


def test_a_push_over_the_storage_limit_leaves_nothing(
    start_server: ServerFactory, git: Git, work: Path
) -> None:
    server = start_server("--max-repo-bytes", "200000")
    found = Endpoint(server, git, work, "small")
    (work / "big").write_bytes(os.urandom(20_000_000))
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Big", cwd=work)
    error = git("push", found.url, "main", cwd=work, fails=True)
    assert "pack exceeds maximum allowed size" in error
    assert found.head in git("ls-remote", found.url)
    gitdir = next((server.data / "repos").glob("*/*.git"))
    assert sum(file.stat().st_size for file in gitdir.rglob("*.pack")) < 200_000
    assert not list(gitdir.rglob("tmp_*"))
    git("reset", "-q", "--hard", "HEAD~1", cwd=work)
    git("commit", "-q", "--allow-empty", "-m", "Small", cwd=work)
    git("push", "-q", found.url, "main", cwd=work)
    query = (
        "{viewer{accounts{artifactsEventsAdaptiveGroups"
        '(filter:{eventKind:"error"}){count dimensions{eventType}}}}}'
    )
    with server.client() as client:
        body = client.post("/client/v4/graphql", json={"query": query}).json()
    rows = body["data"]["viewer"]["accounts"][0]["artifactsEventsAdaptiveGroups"]
    assert {"count": 1, "dimensions": {"eventType": "storageLimitReached"}} in rows


def test_more_clients_than_descriptors(start_server: ServerFactory, git: Git, work: Path) -> None:
    """Git processes that find no descriptor wait for one: nobody is told 500, nor nothing."""
    server = start_server()
    made = server.create("scarce")
    url = with_token(made["remote"], made["token"])
    git("push", "-q", url, "main", cwd=work)
    assert server.process is not None
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (90, 90))
    idle = [
        socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
        for _ in range(40)
    ]
    with ThreadPoolExecutor(12) as pool:
        refs = list(pool.map(lambda _: git("ls-remote", url), range(24)))
    assert all("refs/heads/main" in each for each in refs)
    for sock in idle:
        sock.close()
