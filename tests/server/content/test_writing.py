"""Commits by REST."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import Git, Server, ServerFactory, with_token


class Repo:
    """A repository that is written to by REST."""

    def __init__(self, server: Server, name: str, **fields: Any) -> None:
        made = server.create(name, **fields)
        self.server = server
        self.path = f"/namespaces/team/repos/{name}"
        self.remote = with_token(made["remote"], made["token"])

    def write(self, path: str, data: bytes | None, **params: str) -> httpx.Response:
        with self.server.client() as client:
            return client.request(
                "DELETE" if data is None else "PUT",
                f"{self.server.base}{self.path}/file",
                content=data,
                params={"path": path, **params},
                headers={"Content-Type": "application/json"},
            )

    def read(self, path: str, ref: str = "HEAD") -> bytes:
        answer = self.server.api("GET", f"{self.path}/file", path=path, ref=ref)
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture
def repo(server: Server, name: str) -> Repo:
    return Repo(server, name)


def test_files_come_change_and_go(repo: Repo, git: Git, tmp_path: Path) -> None:
    first = repo.write("notes/one.txt", b"one\n").json()["result"]
    assert first["message"] == "Write notes/one.txt" and first["parents"] == []
    second = repo.write(
        'notes/\u00fc "q".txt',
        b"\0binary{}",
        message="Add two\n\nWith a body.",
        author_name="Ann",
        author_email="ann@example.org",
    ).json()["result"]
    assert second["parents"] == [first["hash"]]
    assert second["author"] == {"name": "Ann", "email": "ann@example.org"}
    assert repo.read('notes/\u00fc "q".txt') == b"\0binary{}"
    same = repo.write("notes/one.txt", b"one\n").json()["result"]
    assert same["hash"] == second["hash"]
    gone = repo.write("notes/one.txt", None).json()["result"]
    assert gone["message"] == "Delete notes/one.txt"
    assert repo.write("notes/one.txt", None).status_code == 404
    git("clone", "-q", repo.remote, tmp_path / "copy")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "copy").strip() == gone["hash"]
    git("fsck", "--strict", cwd=tmp_path / "copy")


def test_a_push_and_a_written_file_go_together(
    repo: Repo, git: Git, work: Path, tmp_path: Path
) -> None:
    git("push", "-q", repo.remote, "main", cwd=work)
    made = repo.write("run.sh", b"#!/bin/sh\necho new\n").json()["result"]
    assert "rejected" in git("push", repo.remote, "main~1:main", cwd=work, fails=True)
    git("pull", "-q", "--ff-only", repo.remote, "main", cwd=work)
    assert git("rev-parse", "HEAD", cwd=work).strip() == made["hash"]
    assert (work / "run.sh").stat().st_mode & 0o111
    assert repo.write("x", b"x", branch="topic/new").json()["result"]["parents"] == []
    info = repo.server.result("GET", repo.path)
    assert info["last_push_at"] is not None


def test_what_is_in_the_way(repo: Repo, git: Git, work: Path) -> None:
    git("push", "-q", repo.remote, "main", cwd=work)
    for path in ("src", "README.md/x", "link"):
        answer = repo.write(path, b"x")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (409, 10202), path
    tip = git("rev-parse", "main", cwd=work).strip()
    assert repo.write("a", b"1", expected="0" * 40).status_code == 409
    moved = repo.write("a", b"1", expected=tip).json()["result"]["hash"]
    assert repo.write("a", b"2", expected=tip).status_code == 409
    assert repo.write("a", b"2", expected=moved).status_code == 200


def test_of_changes_at_the_same_time_none_is_lost(repo: Repo) -> None:
    repo.write("start", b"")

    def write(number: int) -> int:
        return repo.write(f"file{number}", b"x").status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(write, range(16)))
    assert set(statuses) <= {200, 409} and 200 in statuses
    commits = repo.server.result("GET", f"{repo.path}/log")
    assert len(commits) == 1 + statuses.count(200)


@pytest.mark.parametrize(
    "path",
    [
        *["", "/a", "a/", "a//b", ".", "..", "a/../b", ".git/config", "a/.GIT/hooks/x", ".git ."],
        *["git~1/config", ".g\u200cit/config", ".git::$INDEX_ALLOCATION/x", "a\\b", "a\nb", "a\0b"],
        *[".gitmodules", "x" * 256, "GITMOD~1"],
    ],
)
def test_paths_that_are_refused(repo: Repo, path: str) -> None:
    answer = repo.write(path, b"x")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 10100)


def test_who_and_how_much(start_server: ServerFactory) -> None:
    server = start_server("--max-repo-bytes", "100000")
    repo = Repo(server, "small")
    assert repo.write("a", bytes(2_000_000)).status_code == 413
    assert repo.write("a", bytes(200_000)).status_code == 413
    assert repo.write("a", b"x", author_name="A <b>").status_code == 400
    assert repo.write("a", b"x", branch="a..b").status_code == 400
    with server.client(server.make_token("read")) as client:
        url = f"{server.base}{repo.path}/file?path=a"
        assert client.put(url, content=b"x").status_code == 403
        assert client.delete(url).status_code == 403
    closed = Repo(server, "closed", read_only=True)
    assert closed.write("a", b"x").status_code == 409
