"""The Python client against the real server, blocking and under trio and asyncio."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from artifactfs.client import (
    Artifacts,
    ArtifactsError,
    AsyncArtifacts,
    AsyncFoundRepo,
    Conflict,
    FoundRepo,
)
from artifactfs.server.problems import Code
from tests.git.http_backend import http_backend
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


def test_a_handle_has_what_the_server_knows(artifacts: Artifacts) -> None:
    made = artifacts.create("task", description="to do")
    repo = artifacts.get("task")
    assert (repo.id, repo.remote, repo.description) == (made.id, made.remote, "to do")
    assert (repo.default_branch, repo.read_only, repo.source) == ("main", False, None)
    assert repo.created_at.tzinfo is not None and repo.info() == artifacts.list().repos[0]
    token = repo.create_token("read")
    tokens = repo.list_tokens()
    assert tokens.total == len(tokens) == 2 and tokens[1] in tokens.tokens
    assert repo.revoke_token(token.plaintext) is True and repo.list_tokens().total == 1


def test_contents_by_oid(artifacts: Artifacts, git: Git, work: Path) -> None:
    made = artifacts.create("task")
    git("push", "-q", with_token(made.remote, made.token), "main", cwd=work)
    repo = artifacts.get("task")
    top = repo.log()[0]
    assert repo.commit(top.hash) == top
    entries = {entry.name: entry for entry in repo.tree(top.tree)}
    assert (entries["run.sh"].type, entries["run.sh"].mode) == ("exec", "100755")
    assert (entries["link"].type, entries["src"].type) == ("symlink", "tree")
    assert repo.blob(entries["README.md"].hash) == b"# Demo\n"
    with pytest.raises(ArtifactsError) as caught:
        repo.blob("0" * 40)
    assert caught.value.code == "NOT_FOUND"


def test_namespaces(artifacts: Artifacts) -> None:
    name = f"{artifacts.namespace}-eu"
    made = artifacts.create_namespace(name, jurisdiction="eu")
    assert (made.jurisdiction, made.repo_count) == ("eu", 0)
    assert artifacts.get_namespace(name) == made and made in list(artifacts.namespaces())
    assert artifacts.delete_namespace(name) is True and artifacts.delete_namespace(name) is False


def test_usage_analytics_and_webhooks(artifacts: Artifacts) -> None:
    artifacts.create("task")
    report = artifacts.usage()
    assert report.namespaces[artifacts.namespace].operations >= 1
    assert report.account.operations >= report.namespaces[artifacts.namespace].operations
    query = """query ($account: string) { viewer { accounts(filter: {accountTag: $account}) {
        artifactsEventsAdaptiveGroups(limit: 10, filter: {repositoryNamespace: "%s"}) {
          count dimensions { eventType } } } } }"""
    found = artifacts.analytics(query % artifacts.namespace, {"account": ACCOUNT})
    groups = found["viewer"]["accounts"][0]["artifactsEventsAdaptiveGroups"]
    assert {"count": 1, "dimensions": {"eventType": "create"}} in groups
    with pytest.raises(ArtifactsError) as caught:
        artifacts.analytics("{ nonsense }")
    assert caught.value.code == "INVALID_INPUT"

    hook = artifacts.create_webhook("http://127.0.0.1:9/hook", namespace=artifacts.namespace)
    assert hook.secret and hook.secret not in repr(hook)
    assert [each.secret for each in artifacts.webhooks() if each.id == hook.id] == [None]
    assert artifacts.delete_webhook(hook.id) is True
    assert artifacts.delete_webhook(hook.id) is False


def test_a_fork_is_merged(artifacts: Artifacts, git: Git, work: Path) -> None:
    made = artifacts.create("task")
    git("push", "-q", with_token(made.remote, made.token), "main", cwd=work)
    task = artifacts.repo("task")
    for fork, path in (("one", "one.txt"), ("two", "README.md")):
        task.fork(fork)
        artifacts.repo(fork).write_file(path, b"theirs\n")
    ours = task.write_file("README.md", b"ours\n")

    found = task.compare("main", head_repo="one")
    assert (found.status, found.ahead, found.mergeable) == ("diverged", 1, True)
    assert b"+theirs" in task.compare_diff("main", head_repo="one")
    done = task.merge("main", head_repo="one", message="Take one", expected=ours.hash)
    assert (done.outcome, done.before) == ("merged", ours.hash)
    top = task.log()[0]
    assert (top.hash, top.message, top.parents) == (done.hash, "Take one", (ours.hash, found.head))

    assert [each.path for each in task.compare(head_repo="two").conflicts] == ["README.md"]
    with pytest.raises(ArtifactsError) as caught:
        task.merge("main", head_repo="two")
    assert caught.value.code == "MERGE_CONFLICT"
    assert caught.value.conflicts == (Conflict("README.md", "contents"),)
    assert task.log()[0] == top and task.read_file("README.md") == b"ours\n"

    assert task.archive(path="src", format="zip").startswith(b"PK")
    git("push", "-q", with_token(made.remote, made.token), "main:topic", cwd=work)
    assert task.delete_ref("heads/topic") is True and task.delete_ref("heads/topic") is False


def test_imports_are_kept_in_step(artifacts: Artifacts, git: Git, work: Path) -> None:
    source = work.parent / "elsewhere" / "demo.git"
    git("clone", "-q", "--bare", work, source)
    with http_backend(source.parent) as backend:
        backend.accept = {"ann:secret"}
        url = f"{backend.url}/demo.git"
        artifacts.import_("copy", url, username="ann", password="secret")
        git("branch", "side", "main", cwd=source)
        done = artifacts.repo("copy").sync(username="ann", password="secret")
    assert [(each.ref, each.before) for each in done.updated] == [("refs/heads/side", "0" * 40)]
    assert done.diverged == ()


def test_repositories_of_all_namespaces(artifacts: Artifacts, server: Server) -> None:
    artifacts.create("here")
    server.create(f"there-{artifacts.namespace}", namespace=f"{artifacts.namespace}-b")
    found = {(r.namespace, r.name) for r in artifacts.repos(all_namespaces=True)}
    assert (artifacts.namespace, "here") in found
    assert (f"{artifacts.namespace}-b", f"there-{artifacts.namespace}") in found


METHODS = re.compile(r"^\| `(\w+)\([^|]*\)` \| `(Artifacts|Repo)\.(\w+)` \|", re.MULTILINE)
DOCUMENTED = {
    *("create", "get", "list", "import", "delete"),
    *("createToken", "listTokens", "revokeToken", "fork"),
}
"""The methods of the Workers binding."""


def test_every_method_of_the_binding_has_a_counterpart() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    table = METHODS.findall(page)
    assert {documented for documented, _, _ in table} == DOCUMENTED
    classes = {"Artifacts": (Artifacts, AsyncArtifacts), "Repo": (FoundRepo, AsyncFoundRepo)}
    for _, owner, ours in table:
        for each in classes[owner]:
            assert callable(getattr(each, ours)) and getattr(each, ours).__doc__


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
    assert [r.name for r in artifacts.repos(sort="name", direction="asc")] == names
    last = artifacts.list(limit=100, page=3, sort="name", direction="asc")
    assert [r.name for r in last.repos] == names[200:]


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
        await client.repo("task-2").write_file("new.txt", b"new\n")
        await repo.write_file("old.txt", b"old\n")
        with pytest.raises(ArtifactsError, match="no commit in common"):
            await repo.merge("main", head_repo="task-2")
        await repo.fork("task-3")
        theirs = await client.repo("task-3").write_file("new.txt", b"new\n")
        assert (await repo.compare("main", head_repo="task-3")).head == theirs.hash
        done = await repo.merge("main", head_repo="task-3", method="fast-forward")
        assert (done.outcome, done.hash) == ("fast-forwarded", theirs.hash)
        await repo.fork("task-4")
        await client.repo("task-4").write_file("new.txt", b"theirs\n")
        ours = await repo.write_file("new.txt", b"ours\n")
        with pytest.raises(ArtifactsError) as caught:
            await repo.merge("main", head_repo="task-4")
        assert caught.value.code == "MERGE_CONFLICT"
        assert caught.value.conflicts == (Conflict("new.txt", "contents"),)
        assert (await repo.log())[0].hash == ours.hash
        assert await client.delete("task") and not await client.delete("never")
        with pytest.raises(ArtifactsError):
            await client.get("task")


def test_async_under_trio_and_asyncio(server: Server, name: str) -> None:
    trio.run(use_async, server, f"tr-{name[-6:]}")
    asyncio.run(use_async(server, f"as-{name[-6:]}"))
