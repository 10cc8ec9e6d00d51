"""Smart HTTP against `git http-backend`: credentials, redirects, failures, connections."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio

from artifactfs.errors import (
    AuthenticationFailed,
    ProtocolError,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.git.remote.opening import open_remote
from artifactfs.git.remote.remote import Remote
from artifactfs.git.wire.credentials import CredentialFile
from tests.e2e.processes import refusing_port
from tests.git.http_backend import Backend, http_backend
from tests.git.sample_repository import Sample
from tests.git.static_server import static_server

T = TypeVar("T")
TOKEN = "art_v1_0123456789abcdef0123456789abcdef01234567?expires=1700000000"


@pytest.fixture
def file(tmp_path: Path) -> CredentialFile:
    return CredentialFile(tmp_path / "credentials")


def with_remote(
    url: str,
    body: Callable[[Remote], Awaitable[T]],
    *,
    file: CredentialFile | None = None,
    deadline_s: float = 20.0,
    expect_refs: bool = False,
) -> T:
    """Open `url`, run `body`, close."""

    async def main() -> T:
        remote = await open_remote(url, file, deadline_s=deadline_s, expect_refs=expect_refs)
        try:
            return await body(remote)
        finally:
            await remote.aclose()

    return trio.run(main)


async def list_refs(remote: Remote) -> set[str]:
    return set((await remote.ls_refs(("refs/heads/",))).refs)


async def read_pack(remote: Remote, oid: bytes, *, urgent: bool = False) -> bytes:
    async with remote.fetch_pack([oid], urgent=urgent) as pack:
        return b"".join([chunk async for chunk in pack])


def test_a_token_with_a_question_mark_is_sent_as_the_password(
    backend: Backend, file: CredentialFile
) -> None:
    url = f"{backend.url}/sample.git"
    backend.accept = {f"x:{TOKEN}"}
    file.set(url, "x", TOKEN)
    assert with_remote(url, list_refs, file=file) == {"refs/heads/main", "refs/heads/topic/one"}
    expected = "Basic " + base64.b64encode(f"x:{TOKEN}".encode()).decode()
    assert {request.authorization for request in backend.seen} == {expected}


def test_credentials_in_the_url_work_and_do_not_show(backend: Backend) -> None:
    backend.accept = {f"x:{TOKEN}"}
    url = f"http://x:{TOKEN}@127.0.0.1:{backend.port}/sample.git"

    async def body(remote: Remote) -> None:
        assert "art_v1" not in remote.name
        assert await list_refs(remote)

    with_remote(url, body)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_an_error_that_names_no_secret(
    backend: Backend, file: CredentialFile, status: int
) -> None:
    url = f"{backend.url}/sample.git"
    backend.accept, backend.refuse_with = {"x:right"}, status
    file.set(url, "x", "S3CRET")
    with pytest.raises(AuthenticationFailed) as caught:
        with_remote(url, list_refs, file=file, expect_refs=True)
    assert "S3CRET" not in f"{caught.value} {caught.value.hint}"


def test_no_credentials_at_all_is_said(backend: Backend) -> None:
    backend.accept = {"x:right"}
    with pytest.raises(AuthenticationFailed, match="needs credentials"):
        with_remote(f"{backend.url}/sample.git", list_refs)


@pytest.mark.parametrize("status", [401, 403])
def test_a_fresh_token_in_the_file_is_used_after_one_refusal(
    backend: Backend, file: CredentialFile, status: int
) -> None:
    """The token expired, and `set-remote` put another one in place."""
    url = f"{backend.url}/sample.git"
    backend.accept, backend.refuse_with = {"x:old"}, status
    file.set(url, "x", "old")

    async def body(remote: Remote) -> None:
        backend.accept = {"x:new"}
        with pytest.raises(AuthenticationFailed):
            await list_refs(remote)
        file.set(url, "x", "new")
        assert await list_refs(remote)
        before = len(backend.seen)
        assert await list_refs(remote)
        assert len(backend.seen) == before + 1

    with_remote(url, body, file=file)


def test_a_helper_answers_a_401(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text('[credential]\n\thelper = "!f() { echo username=h; echo password=p; }; f"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    backend.accept = {"h:p"}
    assert with_remote(f"{backend.url}/sample.git", list_refs, expect_refs=True)


def test_a_burst_of_refusals_asks_the_helpers_once(
    backend: Backend, hosted: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, log = tmp_path / "gitconfig", tmp_path / "log"
    script = f"echo $1 >> {log}; echo username=h; echo password=p"
    config.write_text(f'[credential]\n\thelper = "!f() {{ {script}; }}; f"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    blob = hosted.blobs()["README.md"]

    async def body(remote: Remote) -> None:
        backend.accept = {"h:p"}
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(read_pack, remote, blob)

    with_remote(f"{backend.url}/sample.git", body)
    assert log.read_text() == "get\nstore\n"


def test_debug_logs_have_no_credentials(
    backend: Backend, file: CredentialFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    file.set(backend.url, "x", "S3CRET")
    backend.accept = {"x:S3CRET"}
    assert with_remote(f"{backend.url}/sample.git", list_refs, file=file)
    encoded = base64.b64encode(b"x:S3CRET").decode()
    assert "S3CRET" not in caplog.text
    assert encoded not in caplog.text


def test_a_redirect_is_followed_once(backend: Backend) -> None:
    backend.redirects["/old/"] = f"{backend.url}/"
    assert with_remote(f"{backend.url}/old/sample.git", list_refs)
    assert [request.path for request in backend.seen][2:] == ["/sample.git/git-upload-pack"]


def test_credentials_do_not_follow_to_another_host(
    backend: Backend, hosted: Sample, file: CredentialFile
) -> None:
    with http_backend(hosted.bare.parent) as other:
        backend.redirects["/"] = f"{other.url}/"
        file.set(backend.url, "x", "for the first one")
        assert with_remote(f"{backend.url}/sample.git", list_refs, file=file)
        assert backend.seen[0].authorization
        assert {request.authorization for request in other.seen} == {None}


@pytest.mark.parametrize("expect_refs", [False, True])
def test_what_a_helper_gave_for_a_host_does_not_follow_to_another(
    backend: Backend,
    hosted: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expect_refs: bool,
) -> None:
    """Nor has the helper to forget it there."""
    config, log = tmp_path / "gitconfig", tmp_path / "log"
    script = f"echo $1 >> {log}; sed -n 's/^host=/password=for-/p'; echo username=h"
    config.write_text(f'[credential]\n\thelper = "!f() {{ {script}; }}; f"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    with http_backend(hosted.bare.parent) as other:
        backend.redirects_strangers, backend.redirects = False, {"/": f"{other.url}/"}
        for each in (backend, other):
            each.accept = {f"h:for-{each.url.removeprefix('http://')}"}
        url = f"{backend.url}/sample.git"
        assert with_remote(url, list_refs, expect_refs=expect_refs)
        sent = {request.authorization for request in other.seen} - {None}
        assert sent == {"Basic " + base64.b64encode(next(iter(other.accept)).encode()).decode()}
    assert "erase" not in log.read_text().split()


def test_a_redirect_loop_ends(backend: Backend) -> None:
    backend.redirects["/"] = f"{backend.url}/"
    with pytest.raises(RemoteUnreachable, match="without end"):
        with_remote(f"{backend.url}/sample.git", list_refs)


def test_nobody_listens() -> None:
    with refusing_port() as port, pytest.raises(RemoteUnreachable, match="no connection"):
        with_remote(f"http://127.0.0.1:{port}/r.git", list_refs, expect_refs=True)


def test_no_such_host() -> None:
    with pytest.raises(RemoteUnreachable, match="no connection"):
        with_remote("http://no-such-host.invalid/r.git", list_refs)


def test_no_such_repository(backend: Backend) -> None:
    with pytest.raises(RemoteNotFound):
        with_remote(f"{backend.url}/absent.git", list_refs, expect_refs=True)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, RemoteUnreachable),
        (503, RemoteUnreachable),
        (429, RemoteUnreachable),
        (418, ProtocolError),
    ],
)
def test_other_answers(backend: Backend, status: int, error: type[RemoteError]) -> None:
    backend.status = status
    with pytest.raises(error, match=str(status)):
        with_remote(f"{backend.url}/sample.git", list_refs)


def test_a_stalled_server_meets_the_deadline(backend: Backend) -> None:
    async def body(remote: Remote) -> None:
        backend.stall = threading.Event()
        with pytest.raises(RemoteUnreachable):
            await list_refs(remote)
        backend.stall.set()
        backend.stall = None
        assert await list_refs(remote)

    with_remote(f"{backend.url}/sample.git", body, deadline_s=6.0)


@pytest.mark.parametrize("after", [0, 3, 40, 2000])
def test_an_answer_that_is_cut_short_is_an_error(
    backend: Backend, hosted: Sample, after: int
) -> None:
    async def body(remote: Remote) -> None:
        backend.cut_after = after
        with pytest.raises(RemoteUnreachable):
            await read_pack(remote, hosted.oid("main"))
        backend.cut_after = None
        assert (await read_pack(remote, hosted.oid("main"))).startswith(b"PACK")

    with_remote(f"{backend.url}/sample.git", body)


def test_connections_are_kept_and_urgent_ones_are_apart(backend: Backend, hosted: Sample) -> None:
    blob = hosted.blobs()["README.md"]

    async def body(remote: Remote) -> None:
        for _ in range(3):
            await read_pack(remote, blob)
        for _ in range(3):
            await read_pack(remote, blob, urgent=True)

    with_remote(f"{backend.url}/sample.git", body)
    connections = [request.connection for request in backend.seen]
    assert len(set(connections[1:4])) == 1
    assert {connections[0]} == set(connections[4:])  # the advertisement warmed it
    assert connections[1] != connections[-1]


def test_an_urgent_request_passes_a_stalled_background(backend: Backend, hosted: Sample) -> None:
    blob = hosted.blobs()["README.md"]

    async def body(remote: Remote) -> None:
        gate = backend.stall = threading.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(12):  # more than there are background connections
                nursery.start_soon(read_pack, remote, blob)
            for _ in range(8):
                await trio.to_thread.run_sync(backend.stalled.acquire)
            backend.stall = None
            assert await read_pack(remote, blob, urgent=True)
            gate.set()

    with_remote(f"{backend.url}/sample.git", body)


def test_a_connection_that_the_server_closed_is_replaced(backend: Backend, hosted: Sample) -> None:
    backend.close_each = True
    blob = hosted.blobs()["README.md"]

    async def body(remote: Remote) -> None:
        for _ in range(4):
            assert await read_pack(remote, blob)

    with_remote(f"{backend.url}/sample.git", body)
    assert len({request.connection for request in backend.seen}) == 5


def test_large_requests_are_compressed_and_version_2(backend: Backend, hosted: Sample) -> None:
    async def body(remote: Remote) -> None:
        await remote.object_sizes([bytes([n]) * 20 for n in range(200)])
        assert remote.requests.by_kind == {"capabilities": 1, "object-info": 1}
        assert remote.requests.bytes_out < 4000
        assert remote.requests.bytes_in > 0

    with_remote(f"{backend.url}/sample.git", body)
    assert backend.seen[1].encoding == "gzip"
    assert len(backend.seen[1].body) > 9_000
    assert {request.protocol for request in backend.seen} == {"version=2"}


def test_cancelling_leaves_the_remote_usable(backend: Backend, hosted: Sample) -> None:
    async def body(remote: Remote) -> None:
        gate = backend.stall = threading.Event()
        for _ in range(10):
            with trio.move_on_after(0.02):
                await read_pack(remote, hosted.oid("main"))
        gate.set()
        backend.stall = None
        with trio.fail_after(60):
            assert await read_pack(remote, hosted.oid("main"))

    with_remote(f"{backend.url}/sample.git", body)


def test_a_web_page_is_not_a_repository(tmp_path: Path) -> None:
    (tmp_path / "info").mkdir()
    (tmp_path / "info/refs").write_text("<!DOCTYPE html><p>hello")
    with static_server(tmp_path) as url, pytest.raises(ProtocolError, match="not a Git repository"):
        with_remote(url, list_refs)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, and its key, in one file."""
    file = tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(file.with_suffix(".key")), "-out", str(file)),
        ],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + file.with_suffix(".key").read_text())
    return file


def test_https_checks_the_certificate_as_git_is_told_to(
    hosted: Sample, certificate: Path, monkeypatch: pytest.MonkeyPatch, file: CredentialFile
) -> None:
    with http_backend(hosted.bare.parent, certificate) as backend:
        url = f"{backend.url}/sample.git"
        assert url.startswith("https://")
        with pytest.raises(RemoteUnreachable, match="not trusted"):
            with_remote(url, list_refs)
        monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
        assert with_remote(url, list_refs)
        with http_backend(hosted.bare.parent) as plain:
            plain.redirects["/"] = f"{backend.url}/"
            assert with_remote(f"{plain.url}/sample.git", list_refs)
            backend.redirects["/down/"] = f"{plain.url}/"
            with pytest.raises(RemoteUnreachable, match="unencrypted"):
                with_remote(f"{backend.url}/down/sample.git", list_refs)


PROJECT = Path(__file__).resolve().parents[3]


@contextmanager
def http2_server(root: Path, certificate: Path) -> Iterator[str]:
    """hypercorn with `git http-backend` behind it; yields the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hypercorn", "-k", "trio", "--workers", "0"),
                *("--certfile", str(certificate), "--keyfile", str(certificate)),
                *("--bind", f"fd://{listener.fileno()}", "tests.git.asgi_backend:app"),
            ],
            env=os.environ | {"GIT_PROJECT_ROOT": str(root), "PYTHONPATH": str(PROJECT)},
            pass_fds=[listener.fileno()],
        )
        try:
            # The socket listens already: the first connection waits for the server.
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def test_urgent_requests_share_a_connection_over_http_2(
    hosted: Sample, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    versions: list[tuple[str, str]] = []
    send = httpx.AsyncClient.send

    async def recording(client: Any, request: httpx.Request, **options: Any) -> httpx.Response:
        response = await send(client, request, **options)
        versions.append((request.method, response.headers["x-http-version"]))
        return response

    monkeypatch.setattr(httpx.AsyncClient, "send", recording)
    blobs = list(hosted.blobs().values())

    async def body(remote: Remote) -> None:
        async with trio.open_nursery() as nursery:
            for blob in blobs:
                nursery.start_soon(partial(read_pack, remote, blob, urgent=True))
        assert await read_pack(remote, hosted.oid("main"))

    with http2_server(hosted.bare.parent, certificate) as url:
        with_remote(f"{url}/sample.git", body)
    assert versions == [("GET", "2"), *[("POST", "2")] * len(blobs), ("POST", "1.1")]
