"""Merging branches and forks by REST."""

from __future__ import annotations

import random
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.git.http_backend import http_backend
from tests.server.running import Git, Server, ServerFactory, with_token

ROOT = "/namespaces/team/repos"


class Ancestor:
    """A repository with `work` on main, and forks of it that were written to."""

    def __init__(self, server: Server, git: Git, work: Path, name: str) -> None:
        made = server.create(name)
        self.server, self.name, self.path = server, name, f"{ROOT}/{name}"
        self.git, self.remote = git, with_token(made["remote"], made["token"])
        git("push", "-q", self.remote, "main", cwd=work)

    def fork(self, suffix: str, files: dict[str, str]) -> str:
        """The name of a new fork; each file is a commit on its main."""
        fork = f"{self.name}-{suffix}"
        self.server.result("POST", f"{self.path}/fork", {"name": fork})
        self.server.wait_ready(fork)
        for path, text in files.items():
            self.write(path, text, repo=fork)
        return fork

    def write(self, path: str, text: str, repo: str | None = None, branch: str = "main") -> str:
        where = f"{self.server.base}{ROOT}/{repo or self.name}/file"
        with self.server.client() as client:
            params = {"path": path, "branch": branch}
            answer = client.put(where, content=text.encode(), params=params)
        assert answer.is_success, answer.text
        written: str = answer.json()["result"]["hash"]
        return written

    def read(self, path: str) -> str:
        return self.server.api("GET", f"{self.path}/file", path=path).text

    def merge(self, **body: Any) -> httpx.Response:
        return self.server.api("POST", f"{self.path}/merge", body)

    def compare(self, **params: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.server.result("GET", f"{self.path}/compare", **params)
        return found

    def refs(self) -> str:
        return self.git("ls-remote", self.remote)

    def log(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.result("GET", f"{self.path}/log")
        return found


@pytest.fixture
def ancestor(server: Server, git: Git, work: Path, name: str) -> Ancestor:
    return Ancestor(server, git, work, name)


def test_a_fork_comes_back(ancestor: Ancestor, git: Git, tmp_path: Path) -> None:
    fork = ancestor.fork("b", {"new.txt": "new\n"})
    ours = ancestor.write("other.txt", "other\n")
    found = ancestor.compare(head="main", head_repo=fork)
    assert (found["status"], found["ahead"], found["behind"]) == ("diverged", 1, 1)
    assert found["mergeable"] is True and found["conflicts"] == []
    assert [commit["message"] for commit in found["commits"]] == ["Write new.txt"]
    diff = ancestor.server.api("GET", f"{ancestor.path}/compare/diff", head_repo=fork).text
    assert "+new" in diff and "other" not in diff
    assert ancestor.log()[0]["hash"] == ours  # comparing changes nothing
    person = {"author_name": "Ann", "author_email": "ann@example.org"}
    done = ancestor.merge(head="main", head_repo=fork, message="Take it\n\nAll.", **person)
    assert done.status_code == 200, done.text
    result = done.json()["result"]
    assert (result["outcome"], result["before"]) == ("merged", ours)
    top = ancestor.log()[0]
    assert (top["hash"], top["message"]) == (result["hash"], "Take it\n\nAll.")
    assert top["parents"] == [ours, found["head"]] and top["author"]["name"] == "Ann"
    assert (ancestor.read("new.txt"), ancestor.read("other.txt")) == ("new\n", "other\n")
    again = ancestor.merge(head="main", head_repo=f"team/{fork}").json()["result"]
    assert again == {"outcome": "up-to-date", "before": top["hash"], "hash": top["hash"]}
    # Whole without the fork.
    assert ancestor.server.api("DELETE", f"{ROOT}/{fork}").status_code == 202
    git("clone", "-q", ancestor.remote, tmp_path / "copy")
    git("fsck", "--strict", cwd=tmp_path / "copy")


def test_conflicts_are_listed_and_nothing_changes(ancestor: Ancestor) -> None:
    files = {"README.md": "theirs\n", "both \u00fc.txt": "theirs\n", "fine.txt": "fine\n"}
    fork = ancestor.fork("b", files)
    ancestor.write("README.md", "ours\n")
    ancestor.write("both \u00fc.txt", "ours\n")
    before, usage = ancestor.refs(), ancestor.server.data
    objects = sorted(path.name for path in usage.glob("repos/*/*/objects/**/*"))
    conflicts = [
        {"path": "README.md", "kind": "contents"},
        {"path": "both \u00fc.txt", "kind": "contents"},
    ]
    found = ancestor.compare(head_repo=fork)
    assert (found["mergeable"], found["conflicts"]) == (False, conflicts)
    for method in ("merge", "squash"):
        answer = ancestor.merge(head="main", head_repo=fork, method=method)
        assert answer.status_code == 409 and answer.headers["x-should-retry"] == "false"
        error = answer.json()["errors"][0]
        assert (error["code"], error["conflicts"]) == (10203, conflicts)
    assert ancestor.merge(head="main", head_repo=fork, method="fast-forward").status_code == 409
    assert ancestor.refs() == before
    assert sorted(path.name for path in usage.glob("repos/*/*/objects/**/*")) == objects
    assert not list((usage / "trash").glob("scratch*"))


def test_fast_forward_and_squash(ancestor: Ancestor, git: Git, work: Path) -> None:
    git("push", "-q", ancestor.remote, "main:topic", cwd=work)
    fork = ancestor.fork("b", {"one.txt": "1\n", "two.txt": "2\n"})
    tip = ancestor.compare(head_repo=fork)["head"]
    start = ancestor.log()[0]["hash"]
    done = ancestor.merge(head="main", head_repo=fork, method="fast-forward").json()["result"]
    assert done == {"outcome": "fast-forwarded", "before": start, "hash": tip}
    ancestor.write("three.txt", "3\n", branch="topic")
    ancestor.write("four.txt", "4\n", branch="topic")
    done = ancestor.merge(head="topic", method="squash").json()["result"]
    top = ancestor.log()[0]
    assert (done["outcome"], top["hash"], top["parents"]) == ("squashed", done["hash"], [tip])
    assert "* Write three.txt\n* Write four.txt" in top["message"]
    assert ancestor.read("four.txt") == "4\n"


def test_who_comes_in_between(ancestor: Ancestor) -> None:
    """Each merge lands, on top of the others; and none from where it was not expected."""
    start = ancestor.log()[0]["hash"]
    forks = [ancestor.fork(f"f{n}", {f"file{n}.txt": "x\n"}) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: ancestor.merge(head="main", head_repo=each), forks))
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200] * 4, [answer.text for answer in answers]
    assert [ancestor.read(f"file{n}.txt") for n in range(4)] == ["x\n"] * 4
    late = ancestor.fork("late", {"late.txt": "x\n"})
    answer = ancestor.merge(head="main", head_repo=late, expected=start)
    assert answer.status_code == 409 and answer.json()["errors"][0]["code"] == 10202
    answer = ancestor.merge(head="main", head_repo=late, expected_head=start)
    assert answer.json()["errors"][0]["source"] == {"pointer": "/expected_head"}
    here = ancestor.log()[0]["hash"]
    assert ancestor.merge(head="main", head_repo=late, expected=here).status_code == 200


def test_what_cannot_be_merged(ancestor: Ancestor, server: Server, git: Git, work: Path) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"head": "absent"}, 404, "/head"),
        ({"head": "main", "base": "absent"}, 404, "/base"),
        ({"head": "main", "base": "../x"}, 400, "/base"),
        ({"head": "main", "method": "rebase"}, 400, "/method"),
        ({"head": "main", "author_name": "a<b"}, 400, "/author_name"),
    ]
    for body, status, pointer in cases:
        answer = ancestor.merge(**body)
        error = answer.json()["errors"][0]
        assert (answer.status_code, error["source"]["pointer"]) == (status, pointer), answer.text
    assert ancestor.merge(head="main", head_repo="absent").status_code == 404
    git("checkout", "-q", "--orphan", "alone", cwd=work)
    git("commit", "-q", "-m", "Alone", cwd=work)
    git("push", "-q", ancestor.remote, "alone", cwd=work)
    assert ancestor.compare(head="alone")["status"] == "unrelated"
    answer = ancestor.merge(head="alone")
    assert answer.status_code == 409 and "in common" in answer.text
    server.result("PATCH", ancestor.path, {"read_only": True})
    assert ancestor.merge(head="alone").status_code == 409


def test_a_merge_runs_nothing_of_the_tree(ancestor: Ancestor, git: Git, work: Path) -> None:
    """Attributes name drivers and filters; only our configuration could say what they are."""
    git("checkout", "-q", "-b", "evil", cwd=work)
    (work / ".gitattributes").write_text("* merge=evil filter=evil diff=evil export-subst\n")
    (work / ".gitconfig").write_text('[merge "evil"]\n\tdriver = touch /tmp/evil\n')
    (work / "src" / "app.py").write_text("print('three')\n")
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Evil", cwd=work)
    git("push", "-q", ancestor.remote, "evil", cwd=work)
    ancestor.write("other.txt", "other\n")
    assert ancestor.merge(head="evil").json()["result"]["outcome"] == "merged"
    assert ancestor.read("src/app.py") == "print('three')\n"


def test_a_history_that_is_cut_off_goes_nowhere_else(
    ancestor: Ancestor, server: Server, git: Git, work: Path
) -> None:
    """What an import with a depth has left out, its ancestor does not have either."""
    source = work.parent / "elsewhere" / "other.git"
    git("commit", "-q", "--allow-empty", "-m", "More", cwd=work)
    git("clone", "-q", "--bare", work, source)
    shallow = f"{ancestor.name}-s"
    with http_backend(source.parent) as backend:
        body = {"url": f"{backend.url}/other.git", "depth": 1}
        server.result("POST", f"{ROOT}/{shallow}/import", body)
        server.wait_ready(shallow)
    before = ancestor.refs()
    assert ancestor.compare(head_repo=shallow)["status"] == "unrelated"
    answer = ancestor.merge(head="main", head_repo=shallow)
    assert answer.status_code == 409 and "in common" in answer.text
    assert ancestor.refs() == before


def test_a_merge_counts_as_a_push(ancestor: Ancestor, server: Server) -> None:
    before = server.result("GET", ancestor.path)["last_push_at"]
    fork = ancestor.fork("b", {"new.txt": "new\n"})
    ancestor.merge(head="main", head_repo=fork)
    assert server.result("GET", ancestor.path)["last_push_at"] > before


def test_a_full_repository_takes_no_merge(
    start_server: ServerFactory, git: Git, work: Path
) -> None:
    server = start_server("--max-repo-bytes", "200K")
    ancestor = Ancestor(server, git, work, "small")
    noise = b64encode(random.Random(1).randbytes(130_000)).decode()
    fork = ancestor.fork("b", {"big.txt": noise})
    ancestor.write("noise.txt", noise[::-1])
    before = ancestor.refs()
    answer = ancestor.merge(head="main", head_repo=fork)
    assert answer.status_code == 413, answer.text
    assert ancestor.refs() == before


def test_refs_go(ancestor: Ancestor, git: Git, work: Path) -> None:
    git("tag", "v1", cwd=work)
    git("push", "-q", ancestor.remote, "main:refs/heads/a/b", "v1", cwd=work)
    tip = git("rev-parse", "main", cwd=work).strip()

    def delete(ref: str, **params: str) -> httpx.Response:
        return ancestor.server.api("DELETE", f"{ancestor.path}/refs/{ref}", None, **params)

    assert delete("heads/a/b", expected="1" * 40).status_code == 409
    assert delete("heads/main").status_code == 409
    for missing in ("heads/absent", "heads/../../config", "heads", "HEAD"):
        assert delete(missing).status_code == 404
    answer = delete("heads/a/b", expected=tip).json()["result"]
    assert answer == {"name": "refs/heads/a/b", "hash": tip}
    assert delete("refs/tags/v1").status_code == 200
    assert delete("tags/v1").status_code == 404
    names = [line.split()[1] for line in ancestor.refs().splitlines()]
    assert names == ["HEAD", "refs/heads/main"]
