"""The HTTP clients of a remote: what ends them, and what they take from git's configuration."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import trio

from artifactfs.errors import RemoteUnreachable
from artifactfs.git.remote.remote import Remote
from tests.git.http_backend import Backend, http_backend
from tests.git.sample_repository import Sample
from tests.git.wire.test_transport_http import (
    certificate,
    http2_server,
    list_refs,
    read_pack,
    with_remote,
)

__all__ = ["certificate"]  # a fixture


@pytest.fixture
def git_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's git configuration."""
    path = tmp_path / "gitconfig"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(path))
    return path


def test_a_request_to_a_remote_that_was_closed_is_an_error(
    backend: Backend, hosted: Sample
) -> None:
    async def body(remote: Remote) -> None:
        await remote.aclose()
        with pytest.raises(RemoteUnreachable, match="given up"):
            await read_pack(remote, hosted.oid("main"))

    with_remote(f"{backend.url}/sample.git", body)


def test_closing_ends_the_requests_under_way(backend: Backend, hosted: Sample) -> None:
    async def body(remote: Remote) -> None:
        async def read() -> None:
            with pytest.raises(RemoteUnreachable):
                await read_pack(remote, hosted.oid("main"))

        stalled = backend.stall = threading.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.to_thread.run_sync(backend.stalled.acquire)
                await remote.aclose()
        finally:
            stalled.set()

    with_remote(f"{backend.url}/sample.git", body)


def test_a_redirect_while_the_refs_are_asked_for_already(
    backend: Backend, hosted: Sample, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    with http_backend(hosted.bare.parent, certificate) as other:
        stalled = backend.stall = threading.Event()
        backend.redirects["/sample.git/info"] = f"{other.url}/sample.git/info"

        def release() -> None:
            while not other.seen and not over.is_set():
                time.sleep(0.01)
            stalled.set()

        over = threading.Event()
        releasing = threading.Thread(target=release)
        releasing.start()
        try:
            assert with_remote(f"{backend.url}/sample.git", list_refs, expect_refs=True)
        finally:
            over.set()
            releasing.join()


def test_extra_headers_do_not_follow_to_another_host(
    backend: Backend, hosted: Sample, git_config: Path
) -> None:
    with http_backend(hosted.bare.parent) as other:
        git_config.write_text(
            f'[http "{backend.url}/"]\n\textraHeader = Authorization: Basic c2VjcmV0\n'
        )
        backend.redirects["/"] = f"{other.url}/"
        assert with_remote(f"{backend.url}/sample.git", list_refs)
        assert backend.seen[0].authorization == "Basic c2VjcmV0"
        assert {request.authorization for request in other.seen} == {None}


def test_http_2_goes_on_after_answers_that_were_given_up(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    bare = tmp_path / "hosted" / "big.git"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True)

    def blob(content: bytes) -> bytes:
        command = ["git", "-C", str(bare), "hash-object", "-w", "--stdin"]
        done = subprocess.run(command, input=content, capture_output=True, check=True)
        return bytes.fromhex(done.stdout.decode().strip())

    large, small = blob(os.urandom(18 << 20)), blob(b"small\n")

    async def body(remote: Remote) -> None:
        for _ in range(3):
            with trio.fail_after(60):
                async with remote.fetch_pack([large], urgent=True) as pack:
                    while not await anext(pack):
                        pass  # what came first may be no part of the pack
                assert await read_pack(remote, small, urgent=True)

    with http2_server(bare.parent, certificate) as url:
        with_remote(f"{url}/big.git", body)
