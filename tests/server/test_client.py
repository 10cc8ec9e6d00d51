"""The Python client against the real server, blocking and under trio and asyncio."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from artifactfs.client import Artifacts, ArtifactsError, AsyncArtifacts
from artifactfs.server.problems import Code
from tests.server.running import ACCOUNT, Git, Server, with_token


@pytest.fixture
def artifacts(server: Server, name: str) -> Iterator[Artifacts]:
    """A client with a namespace of the test's own."""
    with Artifacts(server.url, ACCOUNT, server.api_token, f"ns-{name[-6:]}") as client:
        yield client


def test_life_of_a_repository(artifacts: Artifacts, git: Git, work: Path) -> None:
    made = artifacts.create("task", description="to do")
    assert made.description == "to do" and made.token not in repr(made)
    git("push", "-q", with_token(made.remote, made.token), "main", cwd=work)
    repo = artifacts.get("task")
    info = repo.info()
    assert info.last_push_at is not None and info.last_push_at.tzinfo is not None
    assert repo.log()[0].message == "Second\n\nWith a body."
    assert repo.read_file("src/app.py") == b"print('two')\n"

    token = repo.create_token("read", ttl=120)
    assert [t.scope for t in repo.list_tokens()] == ["read", "write"]
    assert repo.revoke_token(token) is True
    assert repo.revoke_token(token.id) is True
    assert repo.revoke_token("0" * 16) is False
    assert [t.id for t in repo.list_tokens("revoked")] == [token.id]

    assert [(r.name, r.hash) for r in repo.refs()] == [("refs/heads/main", repo.log()[0].hash)]
    assert b"+print('two')" in repo.diff() and repo.diff("main", "main") == b""
    wrote = repo.write_file("notes.md", b"# Notes\n", message="Take notes")
    assert repo.read_file("notes.md") == b"# Notes\n" and repo.log()[0] == wrote
    assert repo.delete_file("notes.md", expected=wrote.hash).parents == (wrote.hash,)
    assert repo.update(description="done").description == "done"
    away = repo.fork("away", namespace=f"{artifacts.namespace}-b", anonymous_read=True)
    assert f"/{artifacts.namespace}-b/away.git" in away.remote
    assert git("ls-remote", away.remote, "main").split()[0] == repo.log()[0].hash

    fork = repo.fork("retry")
    assert fork.objects and fork.name == "retry"
    assert {r.name for r in artifacts.repos()} == {"task", "retry"}
    assert artifacts.delete("retry") is True
    assert artifacts.delete("never") is False
    assert artifacts.namespace in {n.namespace for n in artifacts.namespaces()}


def test_the_client_knows_every_code_of_the_server() -> None:
    for code in Code:
        answer = {"errors": [{"code": code.number, "message": "no"}]}
        assert ArtifactsError.from_answer(code.status, answer).code == code.name


def test_errors_have_codes(artifacts: Artifacts, server: Server) -> None:
    artifacts.create("once")
    cases = [
        (lambda: artifacts.create("once"), "ALREADY_EXISTS", 10201),
        (lambda: artifacts.create("NO"), "INVALID_REPO_NAME", 10101),
        (lambda: artifacts.get("absent"), "NOT_FOUND", 10200),
        (lambda: artifacts.repo("once").create_token(ttl=1), "INVALID_TTL", 10103),
        (lambda: artifacts.import_("copy", "ftp://x/y"), "INVALID_URL", 10104),
    ]
    for call, code, number in cases:
        with pytest.raises(ArtifactsError) as caught:
            call()
        assert (caught.value.code, caught.value.numeric_code) == (code, number)
    with (
        Artifacts(server.url, ACCOUNT, "aft_wrong", "team") as stranger,
        pytest.raises(ArtifactsError) as caught,
    ):
        stranger.list()
    assert caught.value.code == "AUTHENTICATION"


def test_pages(artifacts: Artifacts) -> None:
    names = [f"repo-{number:03}" for number in range(205)]
    for each in names:
        artifacts.create(each)
    page = artifacts.list(limit=10)
    assert (len(page.repos), page.total) == (10, 205) and page.cursor
    following = artifacts.list(limit=10, cursor=page.cursor)
    assert {r.name for r in page.repos}.isdisjoint(r.name for r in following.repos)
    assert sorted(r.name for r in artifacts.repos()) == names


class Flaky(httpx.BaseTransport):
    """Answers with the given statuses first, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if not self.statuses:
            return httpx.Response(200, json={"result": [], "result_info": {}})
        status = self.statuses.pop(0)
        if status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, headers={"Retry-After": "0"}, json={})


def test_what_is_tried_again() -> None:
    flaky = Flaky(429, 503, 0, 502)
    with Artifacts("http://test", "a", "t", "ns", transport=flaky) as client:
        assert client.list().repos == ()
    assert flaky.requests == 5
    flaky = Flaky(502)
    with (
        Artifacts("http://test", "a", "t", "ns", transport=flaky) as client,
        pytest.raises(ArtifactsError),
    ):
        client.create("maybe-made")  # a POST that may have had its effect is not repeated
    assert flaky.requests == 1
    with (
        Artifacts("http://127.0.0.1:1", "a", "t", "ns", retries=0) as client,
        pytest.raises(ArtifactsError, match="cannot be reached") as caught,
    ):
        client.list()
    assert caught.value.code == "UNAVAILABLE"


async def use_async(server: Server, namespace: str) -> None:
    async with AsyncArtifacts(server.url, ACCOUNT, server.api_token, namespace) as client:
        made = await client.create("task")
        assert re.match(r"art_", made.token)
        repo = await client.get("task")
        assert (await repo.info()).status == "ready"
        fork = await repo.fork("task-2")
        assert fork.objects == 0
        token = await repo.create_token()
        assert len(await repo.list_tokens()) == 2
        assert await repo.revoke_token(token)
        assert [r.name async for r in client.repos()] == ["task-2", "task"]
        assert await repo.log() == ()
        assert await client.delete("task") and not await client.delete("never")
        with pytest.raises(ArtifactsError):
            await client.get("task")


def test_async_under_trio_and_asyncio(server: Server, name: str) -> None:
    trio.run(use_async, server, f"tr-{name[-6:]}")
    asyncio.run(use_async(server, f"as-{name[-6:]}"))
