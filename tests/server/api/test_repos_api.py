"""The control plane: repositories, tokens, namespaces, envelope, codes, pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from artifactfs.server.storage.settings import NameRule, name_is_valid
from tests.server.running import ACCOUNT, Git, Server, ServerFactory, with_token

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
REPOS = "/namespaces/team/repos"


def error_of(answer: object) -> tuple[int, int]:
    """Status and code of a refused call, whose envelope must be whole."""
    body = answer.json()  # type: ignore[attr-defined]
    assert body["success"] is False and body["result"] is None and body["messages"] == []
    return answer.status_code, body["errors"][0]["code"]  # type: ignore[attr-defined]


def test_create_describe_and_delete(server: Server, name: str) -> None:
    made = server.api("POST", REPOS, {"name": name, "description": "for tests"})
    assert made.status_code == 201
    result = made.json()["result"]
    assert set(result) == {"id", "name", "description", "default_branch", "remote", "token"}
    assert re.fullmatch(r"[0-9a-z]{16}", result["id"])
    assert re.fullmatch(r"art_v1_[0-9a-f]{40}\?expires=\d+", result["token"])
    assert result["remote"] == f"{server.url}/git/team/{name}.git"
    assert result["default_branch"] == "main"

    info = server.result("GET", f"{REPOS}/{name}")
    assert (info["id"], info["description"], info["status"]) == (result["id"], "for tests", "ready")
    assert info["last_push_at"] is None and info["source"] is None and info["read_only"] is False
    assert TIME.fullmatch(info["created_at"]) and TIME.fullmatch(info["updated_at"])

    assert error_of(server.api("POST", REPOS, {"name": name})) == (409, 10201)
    for _ in range(2):
        gone = server.api("DELETE", f"{REPOS}/{name}")
        assert (gone.status_code, gone.json()["result"]) == (202, {"id": result["id"]})
    assert error_of(server.api("GET", f"{REPOS}/{name}")) == (404, 10200)
    assert error_of(server.api("DELETE", f"{REPOS}/never-was")) == (404, 10200)
    assert server.api("POST", REPOS, {"name": name}).status_code == 201


@pytest.mark.parametrize(
    ("body", "expected", "pointer"),
    [
        ({"name": "ab"}, (400, 10101), "/name"),
        ({"name": "Upper"}, (400, 10101), "/name"),
        ({"name": "../../etc"}, (400, 10101), "/name"),
        ({"name": "a" * 64}, (400, 10101), "/name"),
        ({"name": 7}, (400, 10101), "/name"),
        ({}, (400, 10101), "/name"),
        ({"name": "fine-name", "default_branch": "a..b"}, (400, 10100), "/default_branch"),
        ({"name": "fine-name", "default_branch": "x.lock"}, (400, 10100), "/default_branch"),
        ({"name": "fine-name", "read_only": "perhaps"}, (400, 10100), "/read_only"),
    ],
)
def test_bad_input_names_the_field(
    server: Server, body: object, expected: tuple[int, int], pointer: str
) -> None:
    answer = server.api("POST", REPOS, body)
    assert error_of(answer) == expected
    assert answer.json()["errors"][0]["source"] == {"pointer": pointer}


def test_broken_json_and_large_bodies(server: Server) -> None:
    with server.client() as client:
        url = server.base + REPOS
        broken = client.post(url, content=b"{", headers={"Content-Type": "application/json"})
        assert error_of(broken) == (400, 10100)
        deep = client.post(
            url, content=b"[" * 500_000, headers={"Content-Type": "application/json"}
        )
        assert error_of(deep) == (400, 10100)
        large = client.post(
            url, content=b'"' + b"x" * 2_000_000, headers={"Content-Type": "application/json"}
        )
        assert error_of(large) == (413, 10402)
        missing = client.delete(f"{url}/no-such-repo", headers={"Content-Type": "application/json"})
        assert error_of(missing) == (404, 10200)
        assert error_of(client.get("/nowhere")) == (404, 10200)
        assert error_of(client.put(url)) == (405, 10405)


def test_both_base_paths_show_the_same(server: Server, name: str) -> None:
    server.create(name)
    with server.client() as client:
        short = client.get(f"/v1/api/namespaces/team/repos/{name}").json()
        assert short == server.api("GET", f"{REPOS}/{name}").json()


def test_api_tokens_are_checked(server: Server, name: str) -> None:
    made = server.create(name)
    url = f"{server.base}{REPOS}/{name}"
    reader = server.make_token("read")
    other = server.make_token(account="other")
    with server.client(reader) as client:
        assert client.get(url).status_code == 200
        assert error_of(client.delete(url)) == (403, 10000)
    with server.client(other) as client:
        assert error_of(client.get(url)) == (403, 10000)
        elsewhere = url.replace(ACCOUNT, "other")
        assert error_of(client.get(elsewhere)) == (404, 10200)
        assert error_of(client.delete(elsewhere)) == (404, 10200)
        taken = client.post("/v1/api/namespaces/team/repos", json={"name": "of-other-account"})
        assert error_of(taken) == (409, 10201)
    for wrong in (made["token"], "aft_" + "0" * 40, "nonsense"):
        with server.client(wrong) as client:
            assert error_of(client.get(url)) == (403, 10000)
    with server.client() as client:
        del client.headers["Authorization"]
        assert error_of(client.get(url)) == (403, 10000)


def test_a_revoked_api_token_stops_working(server: Server) -> None:
    token = server.make_token()
    with server.client(token) as client:
        assert client.get(server.base + REPOS).status_code == 200
        listed = server.command("token", "list").splitlines()
        token_id = listed[-1].split()[0]
        server.command("token", "revoke", token_id)
        assert client.get(server.base + REPOS).status_code == 403
    assert f"{token_id}  revoked" in server.command("token", "list")


def test_repo_tokens(server: Server, name: str) -> None:
    server.create(name)
    base = "/namespaces/team"
    made = server.api("POST", f"{base}/tokens", {"repo": name, "scope": "read", "ttl": 60})
    assert made.status_code == 201
    token = made.json()["result"]
    assert set(token) == {"id", "plaintext", "scope", "expires_at"} and token["scope"] == "read"
    for ttl in (59, 31_536_001, -1):
        wrong = server.api("POST", f"{base}/tokens", {"repo": name, "ttl": ttl})
        assert error_of(wrong) == (400, 10103)
    assert error_of(server.api("POST", f"{base}/tokens", {"repo": "no-such"})) == (404, 10200)

    listed = server.api("GET", f"{REPOS}/{name}/tokens").json()
    assert [t["scope"] for t in listed["result"]] == ["read", "write"]
    assert listed["result_info"]["total_count"] == 2 and "plaintext" not in listed["result"][0]
    for _ in range(2):
        assert server.api("DELETE", f"{base}/tokens/{token['id']}").status_code == 200
    assert error_of(server.api("DELETE", f"{base}/tokens/{'0' * 16}")) == (404, 10200)
    revoked = server.result("GET", f"{REPOS}/{name}/tokens", state="revoked")
    assert [t["id"] for t in revoked] == [token["id"]] and revoked[0]["state"] == "revoked"


def test_lists_page_by_cursor_and_by_number(server: Server) -> None:
    names = [f"page-{number:02}" for number in range(7)]
    for each in names:
        server.create(each, namespace="paging")
    path = "/namespaces/paging/repos"
    seen: list[str] = []
    cursor: str | None = None
    while True:
        extra = {"cursor": cursor} if cursor else {}
        page = server.api("GET", path, limit=3, sort="name", direction="asc", **extra).json()
        seen += [repo["name"] for repo in page["result"]]
        cursor = page["result_info"]["cursor"]
        if cursor is None:
            break
    assert seen == names
    numbered = [server.api("GET", path, per_page=3, page=n).json() for n in (1, 2, 3)]
    assert sorted(r["name"] for p in numbered for r in p["result"]) == names
    assert numbered[0]["result_info"]["total_pages"] == 3
    newest = server.result("GET", path, limit=1)
    assert newest[0]["name"] == "page-06" and newest[0]["remote"].endswith("/page-06.git")
    found = server.result("GET", path, search="GE-03")
    assert [r["name"] for r in found] == ["page-03"]
    assert server.result("GET", path, search="%") == []
    assert error_of(server.api("GET", path, cursor="rubbish")) == (400, 10100)
    assert error_of(server.api("GET", path, limit=201)) == (400, 10100)


def test_namespaces(server: Server) -> None:
    made = server.api("POST", "/namespaces", {"namespace": "fresh", "jurisdiction": "eu"})
    assert made.status_code == 201
    assert made.json()["result"]["jurisdiction"] == "eu"
    assert error_of(server.api("POST", "/namespaces", {"namespace": "fresh"})) == (409, 10201)
    server.create("first", namespace="fresh")
    found = server.result("GET", "/namespaces/fresh")
    assert found["repo_count"] == 1 and TIME.fullmatch(found["created_at"])
    assert "fresh" in [n["namespace"] for n in server.result("GET", "/namespaces", limit=200)]
    assert error_of(server.api("DELETE", "/namespaces/fresh"))[0] == 409
    server.result("DELETE", "/namespaces/fresh/repos/first")
    assert server.api("DELETE", "/namespaces/fresh").status_code == 204
    assert error_of(server.api("GET", "/namespaces/fresh")) == (404, 10200)


def test_openapi_describes_every_route(server: Server) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
        docs = client.get("/docs")
        assert docs.status_code == 200
        for asset in re.findall(r'(?:src|href)="([^"]+)"', docs.text):
            assert client.get(asset).status_code == 200  # nothing comes from elsewhere
    paths = document["paths"]
    base = "/client/v4/accounts/{account_id}/artifacts/namespaces/{namespace}"
    for below in ("/repos", "/repos/{name}", "/repos/{name}/fork", "/tokens", "/repos/{name}/log"):
        assert base + below in paths and "/v1/api/namespaces/{namespace}" + below in paths


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("default", ["agent-007", "0day"], ["Agent", "a_b", "a.b.c", "-abc", "ab"]),
        ("strict", ["agent-x"], ["agent-007", "Agent"]),
        ("extended", ["My_Repo.v2"], ["a..b", "x.git", "x.lock", ".abc", "a b c"]),
    ],
)
def test_rules_for_names(rule: str, good: list[str], bad: list[str]) -> None:
    for each in good:
        assert name_is_valid(each, NameRule(rule)), each
    for each in bad:
        assert not name_is_valid(each, NameRule(rule)), each


def test_extended_names_are_compared_without_case(start_server: ServerFactory) -> None:
    server = start_server("--names", "extended")
    made = server.create("My_Repo", namespace="Team")
    assert server.result("GET", "/namespaces/team/repos/my_repo")["id"] == made["id"]
    assert server.result("GET", "/namespaces/TEAM")["repo_count"] == 1
    again = server.api("POST", "/namespaces/team/repos", {"name": "MY_REPO"})
    assert error_of(again) == (409, 10201)


def test_update(server: Server, git: Git, work: Path, name: str) -> None:
    made = server.create(name, description="before")
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", "main:trunk", cwd=work)
    path = f"/namespaces/team/repos/{name}"
    changed = server.result("PATCH", path, {"default_branch": "trunk", "read_only": True})
    assert (changed["description"], changed["default_branch"]) == ("before", "trunk")
    assert changed["read_only"] is True and changed == server.result("GET", path)
    assert "ref: refs/heads/trunk\tHEAD" in git("ls-remote", "--symref", remote)
    assert "read-only" in git("push", remote, "main:x", cwd=work, fails=True)
    assert server.result("PATCH", path, {"description": ""})["description"] is None
    for wrong in ({"default_branch": "a..b"}, {"read_only": "perhaps"}, []):
        assert server.api("PATCH", path, wrong).status_code == 400
    assert server.api("PATCH", f"{path}-absent", {}).status_code == 404


def test_a_fork_in_another_namespace(server: Server, name: str) -> None:
    server.create(name)
    path = f"/namespaces/team/repos/{name}/fork"
    made = server.result("POST", path, {"name": name, "namespace": "elsewhere"})
    assert f"/elsewhere/{name}.git" in made["remote"]
    info = server.result("GET", f"/namespaces/elsewhere/repos/{name}")
    assert info["source"] == f"artifacts:team/{name}"
    bad = server.api("POST", path, {"name": name, "namespace": "No!"})
    assert bad.status_code == 400
    stranger = server.make_token(account="e" * 32)
    with server.client(stranger) as client:
        client.post("/v1/api/namespaces/theirs/repos", json={"name": "first"}).raise_for_status()
    taken = server.api("POST", path, {"name": name, "namespace": "theirs"})
    assert (taken.status_code, taken.json()["errors"][0]["code"]) == (409, 10201)
