"""Imports with credentials, and keeping imports in step with their source."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.git.http_backend import Backend, http_backend
from tests.server.running import Git, Server, with_token

SECRET = "s3cret-of-the-source"
ROOT = "/namespaces/team/repos"


@pytest.fixture
def source(tmp_path: Path, git: Git, work: Path) -> Path:
    path = tmp_path / "elsewhere" / "demo.git"
    git("clone", "-q", "--bare", work, path)
    git("branch", "side", "main~1", cwd=path)
    return path


@pytest.fixture
def elsewhere(source: Path) -> Iterator[Backend]:
    with http_backend(source.parent) as backend:
        yield backend


def post(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    return server.api("POST", f"{ROOT}/{path}", body)


def imported(server: Server, name: str, url: str, **body: Any) -> str:
    """The remote of a new import, with its token."""
    answer = post(server, f"{name}/import", {"url": url, **body})
    assert answer.status_code == 201, answer.text
    server.wait_ready(name)
    made = answer.json()["result"]
    return with_token(made["remote"], made["token"])


def refs(git: Git, remote: str | Path) -> dict[str, str]:
    lines = git("ls-remote", remote).splitlines()
    return {line.split()[1]: line.split()[0] for line in lines}


def commit(git: Git, work: Path, source: Path | str, text: str, branch: str = "main") -> str:
    (work / "news.txt").write_text(text)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", text, cwd=work)
    git("push", "-q", "-f", source, f"HEAD:{branch}", cwd=work)
    return git("rev-parse", "HEAD", cwd=work).strip()


def test_credentials_are_given_once(
    server: Server, git: Git, elsewhere: Backend, source: Path, name: str, work: Path
) -> None:
    elsewhere.accept = {f"ann:{SECRET}"}
    url = f"{elsewhere.url}/demo.git"
    answer = post(server, f"{name}/import", {"url": url})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, 10106)
    answer = post(server, f"{name}/import", {"url": url, "username": "ann", "password": "wrong"})
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["source"]["pointer"]) == (422, "/password")
    remote = imported(server, name, url, username="ann", password=SECRET)
    assert refs(git, remote) == refs(git, source)
    assert server.result("GET", f"{ROOT}/{name}")["source"] == f"git:{url}"
    tip = commit(git, work, source, "news")
    assert post(server, f"{name}/sync", {}).status_code == 422
    answer = post(server, f"{name}/sync", {"username": "ann", "password": SECRET})
    assert answer.json()["result"]["updated"][0]["after"] == tip
    # Neither they nor what they look like on the wire are anywhere on the disk.
    wire = base64.b64encode(f"ann:{SECRET}".encode())
    for path in server.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data and wire not in data, path


def test_credentials_do_not_follow_a_redirect(
    server: Server, elsewhere: Backend, name: str
) -> None:
    with http_backend(elsewhere.root) as other:
        elsewhere.redirects["/demo.git"] = f"{other.url}/demo.git"
        body = {"url": f"{elsewhere.url}/demo.git", "username": "ann", "password": SECRET}
        assert post(server, f"{name}/import", body).status_code == 201
        server.wait_ready(name)
        assert other.seen and not [each for each in other.seen if each.authorization]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"username": "ann"}, "/password"),
        ({"password": "two\nlines"}, "/password"),
        ({"username": "a:b", "password": SECRET}, "/username"),
    ],
)
def test_odd_credentials(server: Server, name: str, body: dict[str, str], pointer: str) -> None:
    answer = post(server, f"{name}/import", {"url": "http://127.0.0.1:9/x.git", **body})
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["source"]["pointer"]) == (400, pointer)
    assert body.get("password", "ann:") not in answer.text


def test_an_import_follows_its_source(
    server: Server, git: Git, elsewhere: Backend, source: Path, name: str, work: Path
) -> None:
    remote = imported(server, name, f"{elsewhere.url}/demo.git", read_only=True)
    before = refs(git, remote)
    assert post(server, f"{name}/sync", {}).json()["result"] == {"updated": [], "diverged": []}
    tip = commit(git, work, source, "news")
    git("tag", "v1", "main", cwd=source)
    git("branch", "-D", "side", cwd=source)
    result = post(server, f"{name}/sync", {}).json()["result"]
    assert result["diverged"] == [] and result["updated"] == [
        {"ref": "refs/heads/main", "before": before["refs/heads/main"], "after": tip},
        {"ref": "refs/tags/v1", "before": "0" * 40, "after": tip},
    ]
    assert "refs/heads/side" in refs(git, remote)
    result = post(server, f"{name}/sync", {"prune": True}).json()["result"]
    assert [each["ref"] for each in result["updated"]] == ["refs/heads/side"]
    assert refs(git, remote) == refs(git, source)


def test_what_was_pushed_here_stays(
    server: Server, git: Git, elsewhere: Backend, source: Path, name: str, work: Path
) -> None:
    remote = imported(server, name, f"{elsewhere.url}/demo.git")
    git("checkout", "-q", "-b", "ours", cwd=work)
    ours = commit(git, work, remote, "ours")  # to the import, not to its source
    git("checkout", "-q", "main", cwd=work)
    theirs = commit(git, work, source, "theirs")
    result = post(server, f"{name}/sync", {}).json()["result"]
    assert result == {"updated": [], "diverged": ["refs/heads/main"]}
    assert refs(git, remote)["refs/heads/main"] == ours
    result = post(server, f"{name}/sync", {"force": True}).json()["result"]
    assert [each["after"] for each in result["updated"]] == [theirs]


def test_an_import_of_one_branch_stays_one(
    server: Server, git: Git, elsewhere: Backend, source: Path, name: str, work: Path
) -> None:
    remote = imported(server, name, f"{elsewhere.url}/demo.git", branch="main", depth=1)
    git("push", "-q", remote, "main:mine", cwd=work)
    tip = commit(git, work, source, "news")
    result = post(server, f"{name}/sync", {"prune": True}).json()["result"]
    assert [(each["ref"], each["after"]) for each in result["updated"]] == [
        ("refs/heads/main", tip)
    ]
    assert set(refs(git, remote)) == {"HEAD", "refs/heads/main", "refs/heads/mine"}


def test_only_imports_have_a_source(server: Server, name: str, elsewhere: Backend) -> None:
    server.create(name)
    answer = post(server, f"{name}/sync", {})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, 10202)
