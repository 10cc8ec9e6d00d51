"""Reading a repository by REST."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactfs.server.content import objects as content
from tests.server.running import Git, Server, with_token


@pytest.fixture
def repo(server: Server, git: Git, work: Path, name: str) -> str:
    """Path of a repository's routes, with `work` in it."""
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", "main~1:refs/heads/feature/one", cwd=work)
    return f"/namespaces/team/repos/{name}"


def test_log_and_commit(server: Server, git: Git, work: Path, repo: str) -> None:
    commits = server.result("GET", f"{repo}/log")
    assert [c["message"] for c in commits] == ["Second\n\nWith a body.", "First"]
    head = commits[0]
    assert head["hash"] == git("rev-parse", "main", cwd=work).strip()
    assert head["treeHash"] == git("rev-parse", "main^{tree}", cwd=work).strip()
    assert head["parents"] == [commits[1]["hash"]]
    assert head["author"] == {"name": "Ann", "email": "ann@example.org"}
    assert head["authoredAt"] == head["committedAt"] == "2026-01-02T03:04:05.000Z"
    assert server.result("GET", f"{repo}/commit/{head['hash']}") == head
    assert [c["hash"] for c in server.result("GET", f"{repo}/log", limit=1, offset=1)] == [
        commits[1]["hash"]
    ]
    for ref in ("feature/one", "refs/heads/feature/one", commits[1]["hash"]):
        assert len(server.result("GET", f"{repo}/log", ref=ref)) == 1
    assert server.result("GET", f"{repo}/log", ref="nope") == []
    assert server.api("GET", f"{repo}/log", limit=1001).status_code == 400


def test_tree_blob_file_and_raw(server: Server, git: Git, work: Path, repo: str) -> None:
    tree = git("rev-parse", "main^{tree}", cwd=work).strip()
    entries = {e["name"]: e for e in server.result("GET", f"{repo}/tree/{tree}")}
    assert {n: (e["mode"], e["type"]) for n, e in entries.items()} == {
        "README.md": ("100644", "blob"),
        "link": ("120000", "symlink"),
        "run.sh": ("100755", "exec"),
        "src": ("040000", "tree"),
    }
    blob = server.api("GET", f"{repo}/blob/{entries['README.md']['hash']}")
    assert blob.content == b"# Demo\n"
    assert blob.headers["content-type"] == "application/octet-stream"
    file = server.api("GET", f"{repo}/file", path="src/app.py", ref="feature/one")
    assert file.content == b"print('one')\n"
    raw = server.api("GET", f"{repo}/raw/main/src/app.py")
    assert raw.content == b"print('two')\n"
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    assert raw.headers["x-content-type-options"] == "nosniff"
    assert server.api("GET", f"{repo}/raw/feature/one/src/app.py").content == b"print('one')\n"


@pytest.mark.parametrize(
    "path",
    [
        "/tree/0000000000000000000000000000000000000000",
        "/tree/HEAD",
        "/blob/../../../../etc/passwd",
        "/blob/%2e%2e%2f%2e%2e%2fmetadata.db",
        "/raw/main/../../../../../../etc/passwd",
        "/raw/main/%2e%2e/%2e%2e/etc/passwd",
        "/raw/main//etc/passwd",
        "/raw/..%2f..%2fmetadata.db/x",
        "/raw/refs/heads/main/config",
        "/raw/main/src",
        "/file?path=../../config",
        "/file?path=/etc/passwd",
        "/file?path=README.md&ref=../../HEAD",
        "/file?path=README.md&ref=main@%7B0%7D",
        "/file?path=README.md/x",
        "/file?path=",
    ],
)
def test_what_is_not_there_is_404(server: Server, repo: str, path: str) -> None:
    with server.client() as client:
        answer = client.get(f"{server.base}{repo}{path}")
    assert answer.status_code == 404, answer.text
    assert answer.json()["errors"][0]["code"] == 10200


def test_large_files_are_streamed(server: Server, git: Git, work: Path, name: str) -> None:
    made = server.create(name)
    text = ("é" * 700_000).encode()
    (work / "large").write_bytes(text)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Large", cwd=work)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    repo = f"/namespaces/team/repos/{name}"
    oid = git("rev-parse", "main:large", cwd=work).strip()
    for path in ("file?path=large", "raw/main/large", f"blob/{oid}"):
        with server.client() as client:
            answer = client.get(f"{server.base}{repo}/{path}")
        assert answer.content == text
        assert answer.headers["content-length"] == str(len(text))
        kind = "text/plain; charset=utf-8" if "raw" in path else "application/octet-stream"
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_object_that_is_larger_than_any_real_one(
    git: Git, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "LARGEST_OBJECT", 300)
    found = content.Content(work / ".git")
    assert len(found.log("main", 5, 0)) == 2
    git("commit", "-q", "--allow-empty", "-m", "x" * 400, cwd=work)
    with pytest.raises(content.TooLarge):
        found.log("main", 5, 0)


def test_diff(server: Server, git: Git, work: Path, repo: str) -> None:
    answer = server.api("GET", f"{repo}/diff")
    assert answer.headers["content-type"] == "text/x-diff; charset=utf-8"
    assert answer.text == git("diff", "--full-index", "main~1", "main", cwd=work)
    first = server.api("GET", f"{repo}/diff", head="feature/one").text
    assert first.count("diff --git") == 4 and "+# Demo" in first
    back = server.api("GET", f"{repo}/diff", base="main", head="feature/one", path=["src"]).text
    assert "-print('two')" in back
    assert server.api("GET", f"{repo}/diff", path="README.md").text == ""
    for wrong in ({"head": "nope"}, {"base": "0" * 40}, {"base": "--output=/tmp/x"}):
        assert server.api("GET", f"{repo}/diff", **wrong).status_code == 404
    assert server.api("GET", f"{repo}/diff", path="").status_code == 400
    assert server.api("GET", f"{repo}/diff", path=":(exclude)src").text == ""
