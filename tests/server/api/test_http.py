"""What HTTP asks of every route: HEAD, Allow, parts of files, entity tags, other origins."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.server.running import ACCOUNT, Git, Server, ServerFactory, with_token


def api(server: Server) -> httpx.Client:
    return httpx.Client(
        base_url=f"{server.url}/v1/api/namespaces/demo",
        headers={"Authorization": f"Bearer {server.api_token}"},
        timeout=30,
    )


@pytest.fixture
def files(server: Server, git: Git, tmp_path: Path, name: str) -> str:
    """A repository with a small and a large file."""
    with api(server) as client:
        made = client.post("/repos", json={"name": name}).json()["result"]
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small.txt").write_text("0123456789")
    (tree / "large.bin").write_bytes(bytes(range(256)) * 12_000)
    git("init", "-q", "-b", "main", tree)
    git("add", ".", cwd=tree)
    git("commit", "-qm", "Files", cwd=tree)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=tree)
    return name


@pytest.mark.parametrize("file", ["small.txt", "large.bin"])
def test_parts_of_a_file(server: Server, files: str, file: str, git: Git, tmp_path: Path) -> None:
    whole = (tmp_path / "tree" / file).read_bytes()
    size = len(whole)
    url = f"/repos/{files}/raw/main/{file}"
    with api(server) as client:
        full = client.get(url)
        tag = full.headers["ETag"]
        assert (full.status_code, full.content) == (200, whole)
        assert full.headers["Accept-Ranges"] == "bytes"
        assert tag.strip('"') == git("rev-parse", f"HEAD:{file}", cwd=tmp_path / "tree").strip()
        for asked, start, stop in (
            ("bytes=2-5", 2, 6),
            ("bytes=7-", 7, size),
            ("bytes=-3", size - 3, size),
            (f"bytes=0-{size * 2}", 0, size),
            (f"bytes={size - 1}-{size - 1}", size - 1, size),
        ):
            part = client.get(url, headers={"Range": asked})
            assert (part.status_code, part.content) == (206, whole[start:stop]), asked
            assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
            assert int(part.headers["Content-Length"]) == stop - start
        for asked in ("bytes=5-2", "bytes=1-2,4-5", "lines=1-2", "bytes=-"):
            assert client.get(url, headers={"Range": asked}).status_code == 200
        behind = client.get(url, headers={"Range": f"bytes={size}-"})
        assert behind.status_code == 416
        assert behind.headers["Content-Range"] == f"bytes */{size}"
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = client.get(url, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["ETag"] == tag
        assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
        old = {"Range": "bytes=2-5", "If-Range": '"other"'}
        assert client.get(url, headers=old).content == whole
        same = {"Range": "bytes=2-5", "If-Range": tag}
        assert client.get(url, headers=same).content == whole[2:6]


def test_head_wherever_get_is(server: Server, files: str) -> None:
    with api(server) as client:
        paths = [
            *("", f"/{files}", f"/{files}/refs", f"/{files}/log", f"/{files}/tokens"),
            *(f"/{files}/raw/main/small.txt", f"/{files}/raw/main/large.bin"),
            *(f"/{files}/file?path=small.txt", f"/{files}/diff"),
        ]
        urls = [f"/repos{path}" for path in paths]
        urls += [f"{server.url}{path}" for path in ("/healthz", "/metrics", "/openapi.json", "/")]
        for url in urls:
            full, head = client.get(url), client.head(url)
            assert head.status_code == full.status_code, url
            assert head.content == b""
            assert head.headers["Content-Type"] == full.headers["Content-Type"]
            if url != f"{server.url}/metrics":  # grows
                assert head.headers["Content-Length"] == full.headers["Content-Length"]
        assert client.head("/repos/absent").status_code == 404
        part = client.head(f"/repos/{files}/raw/main/large.bin", headers={"Range": "bytes=0-9"})
        assert (part.status_code, part.headers["Content-Length"]) == (206, "10")
    git_url = f"{server.url}/git/demo/{files}.git/info/refs?service=git-upload-pack"
    assert httpx.head(git_url, timeout=60).status_code == 401


def test_a_method_that_is_not_allowed_names_those_that_are(server: Server, files: str) -> None:
    with api(server) as client:
        for method, path, allowed in (
            ("PUT", f"/repos/{files}", "DELETE, GET, HEAD, PATCH"),
            ("DELETE", "/repos", "GET, HEAD, POST"),
            ("HEAD", f"/repos/{files}/fork", "POST"),
            ("POST", f"/repos/{files}/log", "GET, HEAD"),
        ):
            answer = client.request(method, path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    git_url = f"{server.url}/git/demo/{files}.git"
    assert httpx.post(f"{git_url}/info/refs", timeout=60).headers["Allow"] == "GET, HEAD"
    assert httpx.get(f"{git_url}/git-upload-pack", timeout=60).headers["Allow"] == "POST"


@pytest.mark.parametrize("value", ["yes", 1, "true", None])
def test_a_flag_is_true_or_false(server: Server, name: str, value: object) -> None:
    with api(server) as client:
        for field in ("read_only", "anonymous_read"):
            refused = client.post("/repos", json={"name": name, field: value})
            assert refused.status_code == 400
            assert refused.json()["errors"][0]["source"] == {"pointer": f"/{field}"}
        assert client.get(f"/repos/{name}").status_code == 404


def test_a_default_branch_is_a_branch(server: Server, name: str, git: Git, work: Path) -> None:
    with api(server) as client:
        given = {"name": name, "default_branch": "refs/heads/trunk"}
        made = client.post("/repos", json=given).json()["result"]
        assert made["default_branch"] == "trunk"
        url = with_token(made["remote"], made["token"])
        git("push", "-q", url, "main:trunk", cwd=work)
        assert "refs/heads/trunk\tHEAD" in git("ls-remote", "--symref", url)
        changed = client.patch(f"/repos/{name}", json={"default_branch": "refs/heads/other"})
        assert changed.json()["result"]["default_branch"] == "other"
        for wrong in ("refs/tags/v1", "refs/heads/", "refs/heads/a..b", "refs/heads/refs/heads/x"):
            given = {"name": f"{name}-2", "default_branch": wrong}
            assert client.post("/repos", json=given).status_code == 400, wrong


def test_nul_is_refused_everywhere(server: Server, files: str) -> None:
    with api(server) as client:
        for path in (
            *("?search=%00", "?search=a%00b", "?cursor=%00", f"/{files}/log?ref=%00"),
            *(f"/{files}/file?path=%00", f"/{files}/diff?head=%00", f"/{files}/raw/main/a%00b"),
            *(f"/{files}/tree/%00", "/%00"),
        ):
            answer = client.get(f"/repos{path}")
            assert answer.status_code == 400, path
            assert answer.json()["success"] is False
        assert client.delete("/tokens/%00").status_code == 400


def test_a_token_is_revoked_by_itself_and_logged_nowhere(server: Server, files: str) -> None:
    with api(server) as client:
        for written in (lambda text: text, lambda text: text.replace("?", "%3F")):
            token = client.post("/tokens", json={"repo": files}).json()["result"]
            secret = token["plaintext"].partition("?")[0]
            answer = client.delete(f"/tokens/{written(token['plaintext'])}")
            assert answer.json()["result"] == {"id": token["id"]}
            state = client.get(f"/repos/{files}/tokens?state=revoked").json()["result"]
            assert token["id"] in [one["id"] for one in state]
            assert secret not in server.log_path.read_text()
        other = client.delete(f"{server.url}/v1/api/namespaces/other/tokens/{secret}")
        assert other.status_code == 404
        client.delete("/tokens/some-other-kind-of-secret")
    log = server.log_path.read_text()
    assert "/tokens/***" in log and "some-other" not in log
    assert json.loads(log.splitlines()[-1])["method"] == "DELETE"


def test_too_many_requests_are_in_the_analytics(start_server: ServerFactory) -> None:
    server = start_server("--max-requests", "5")
    with api(server) as client:
        client.post("/repos", json={"name": "one"})
        namespaces = f"{server.url}/v1/api/namespaces"
        statuses: list[int] = []
        for url in ["/repos/one"] * 3 + ["/repos", namespaces]:
            refused = False
            while not refused:  # soon, unless the machine takes seconds for each
                statuses.append(client.get(url).status_code)
                refused = statuses[-1] == 429
                assert refused or statuses[-1] == 200
    server.stop()
    server.options = []
    server.start()
    query = """query { viewer { accounts(filter: {accountTag: "%s"}) {
        artifactsEventsAdaptiveGroups(limit: 10, filter: {eventType: "rateLimited"}) {
            count dimensions { repositoryNamespace eventKind } } } } }"""
    answer = httpx.post(
        f"{server.url}/client/v4/graphql",
        headers={"Authorization": f"Bearer {server.api_token}"},
        json={"query": query % ACCOUNT},
        timeout=60,
    ).json()
    groups = answer["data"]["viewer"]["accounts"][0]["artifactsEventsAdaptiveGroups"]
    assert sum(group["count"] for group in groups) == statuses.count(429), answer


ORIGIN = "https://app.example.org"


def test_other_origins_are_let_in_by_a_setting(start_server: ServerFactory, server: Server) -> None:
    allowed = start_server("--cors-origin", ORIGIN)
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,git-protocol,content-type",
    }
    for path in ("/v1/api/namespaces/demo/repos", "/git/demo/x.git/git-upload-pack"):
        answer = httpx.options(f"{allowed.url}{path}", headers=asked, timeout=60)
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "Git-Protocol" in answer.headers["Access-Control-Allow-Headers"]
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        for url, origin in ((allowed.url, "https://evil.example"), (server.url, ORIGIN)):
            refused = httpx.options(f"{url}{path}", headers={**asked, "Origin": origin}, timeout=60)
            assert "Access-Control-Allow-Origin" not in refused.headers
    answer = httpx.get(f"{allowed.url}/healthz", headers={"Origin": ORIGIN}, timeout=60)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Vary"] == "Origin"
    git = httpx.get(
        f"{allowed.url}/git/demo/x.git/info/refs?service=git-upload-pack", headers=asked, timeout=60
    )
    assert git.status_code == 401 and git.headers["Access-Control-Allow-Origin"] == ORIGIN
    page = httpx.get(f"{allowed.url}/", headers={"Origin": ORIGIN}, timeout=60)
    assert "Access-Control-Allow-Origin" not in page.headers
