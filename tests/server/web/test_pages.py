"""The web page as a browser without scripts sees it."""

from __future__ import annotations

import html
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.running import Git, Server, with_token


@pytest.fixture
def visitor(server: Server) -> Iterator[httpx.Client]:
    """Somebody who is logged in with an edit token."""
    with httpx.Client(base_url=server.url, follow_redirects=True, timeout=60) as client:
        answer = client.post("/ui/login", data={"token": server.api_token})
        assert answer.status_code == 200 and "Namespaces" in answer.text
        yield client


def form_key(page: str) -> str:
    match = re.search(r'name="form_key" value="([^"]+)"', page)
    assert match is not None
    return match[1]


def test_nothing_is_shown_without_login(server: Server, name: str) -> None:
    server.create(name)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path in ("/", f"/ui/ns/team/{name}", "/ui/activity", f"/ui/ns/team/{name}/tokens"):
            answer = client.get(path)
            assert answer.status_code == 401 and "Log in" in answer.text
            assert name not in answer.text
        wrong = client.post("/ui/login", data={"token": "aft_" + "0" * 40})
        assert wrong.status_code == 403 and "not valid" in wrong.text
        assert "set-cookie" not in wrong.headers


def test_the_cookie_and_the_headers(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.post("/ui/login", data={"token": server.api_token})
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert server.api_token not in cookie
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "<script" not in page.text
        client.post("/ui/logout")
        client.cookies.set("artifacts_session", cookie.split(";")[0].split("=", 1)[1])
        assert client.get("/").status_code == 401


def test_walking_through_a_repository(
    server: Server, visitor: httpx.Client, git: Git, work: Path, name: str
) -> None:
    (work / "<b>odd & name").write_text("<script>alert(1)</script>\n")
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Add <i>odd</i>", cwd=work)
    made = server.create(name, description="<u>text</u>")
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    base = f"/ui/ns/team/{name}"
    assert "team" in visitor.get("/").text
    assert name in visitor.get("/ui/ns/team", params={"search": name}).text
    tree = visitor.get(base).text
    assert made["remote"] in tree and "src/" in tree and "run.sh" in tree
    assert "<u>text" not in tree and "&lt;b&gt;odd &amp; name" in tree
    assert "app.py" in visitor.get(base, params={"path": "src"}).text
    file = visitor.get(f"{base}/file", params={"path": "src/app.py"}).text
    assert html.escape("print('two')").replace("&#x27;", "&#39;") in file
    odd = visitor.get(f"{base}/file", params={"path": "<b>odd & name"}).text
    assert "<script" not in odd and "&lt;script&gt;" in odd
    log = visitor.get(f"{base}/log").text
    assert "Second" in log and "Add &lt;i&gt;odd" in log
    head = git("rev-parse", "main~1", cwd=work).strip()
    commit = visitor.get(f"{base}/commit/{head}").text
    assert "With a body." in commit and 'class="removed">-print' in commit
    assert visitor.get(base, params={"path": "no/such"}).status_code == 404
    assert visitor.get(f"{base}/commit/zzz").status_code == 404
    activity = visitor.get("/ui/activity").text
    assert "<svg" in activity and "push" in activity


def test_tokens_are_made_and_revoked(
    server: Server, visitor: httpx.Client, git: Git, name: str
) -> None:
    key = form_key(visitor.get("/ui/ns/team").text)
    made = visitor.post("/ui/ns/team", data={"name": name, "form_key": key})
    shown = re.search(r'<pre id="secret"[^>]*>([^<]+)</pre>', made.text)
    assert shown is not None
    remote = with_token(f"{server.url}/git/team/{name}.git", html.unescape(shown[1]))
    git("ls-remote", remote)
    page = visitor.get(f"/ui/ns/team/{name}/tokens").text
    assert shown[1] not in page
    token_id = server.result("GET", f"/namespaces/team/repos/{name}/tokens")[0]["id"]
    revoke = f"/ui/ns/team/{name}/tokens/{token_id}/revoke"
    assert visitor.post(revoke, data={"form_key": "forged"}).status_code == 403
    elsewhere = {"Origin": "https://evil.example"}
    assert visitor.post(revoke, data={"form_key": key}, headers=elsewhere).status_code == 403
    git("ls-remote", remote)
    assert visitor.post(revoke, data={"form_key": key}).status_code == 200
    assert "403" in git("ls-remote", remote, fails=True)


def test_a_read_token_may_only_look(server: Server, name: str) -> None:
    server.create(name)
    with httpx.Client(base_url=server.url, follow_redirects=True, timeout=60) as client:
        client.post("/ui/login", data={"token": server.make_token("read")})
        page = client.get(f"/ui/ns/team/{name}/tokens")
        assert page.status_code == 200 and "form_key" not in page.text
        refused = client.post(f"/ui/ns/team/{name}/tokens", data={"form_key": "x"})
        assert refused.status_code == 403


def test_the_files_with_sizes_commits_and_the_readme(
    server: Server, visitor: httpx.Client, git: Git, work: Path, name: str
) -> None:
    pixel = b64decode("R0lGODlhAQABAAAAACwAAAAAAQABAAA=")
    (work / "logo.gif").write_bytes(pixel)
    (work / "page.html").write_text("<script>alert(1)</script>")
    (work / "README.md").write_text("# Demo\n\n![Logo](logo.gif) **bold** [app](src/app.py)\n")
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Add a logo", cwd=work)
    made = server.create(name)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    base = f"/ui/ns/team/{name}"
    page = visitor.get(base).text
    rows = {}
    for row in page.split("<tr>")[2:]:
        link, subject = re.findall(r"<a [^>]*>([^<]*)</a>", row)[:2]
        rows[link] = subject
    assert rows["src/"] == "Second" and rows["run.sh"] == "First"
    assert rows["logo.gif"] == rows["README.md"] == "Add a logo"
    assert "18 B" in re.sub(r"\s+", " ", page)  # run.sh
    assert "<strong>bold</strong>" in page and '<h2 id="readme-demo">' in page
    image = visitor.get(f"{base}/image", params={"ref": "HEAD", "path": "logo.gif"})
    assert (image.headers["content-type"], image.content) == ("image/gif", pixel)
    assert "sandbox" in image.headers["content-security-policy"]
    for other in ("page.html", "README.md"):
        assert visitor.get(f"{base}/image", params={"path": other}).status_code == 404
    answer = visitor.get(f"{base}/file", params={"path": "src"})
    assert str(answer.url).endswith(f"{base}?ref=HEAD&path=src")


def test_a_readme_that_takes_for_ever_is_shown_as_it_is(
    server: Server, visitor: httpx.Client, name: str
) -> None:
    server.create(name)
    nested = "> " * 20_000 + "*a **a " * 10_000 + "[" * 50_000
    with server.client() as client:
        where = f"{server.base}/namespaces/team/repos/{name}/file"
        assert client.put(where, content=nested.encode(), params={"path": "README.md"}).is_success
    page = visitor.get(f"/ui/ns/team/{name}", timeout=30)
    assert page.status_code == 200 and "README.md" in page.text


def test_a_fork_is_merged_on_the_page(
    server: Server, visitor: httpx.Client, git: Git, work: Path, name: str
) -> None:
    made = server.create(name)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)

    def write(repo: str, path: str, text: str) -> None:
        where = f"{server.base}/namespaces/team/repos/{repo}/file"
        with server.client() as client:
            assert client.put(where, content=text.encode(), params={"path": path}).is_success

    for suffix, path in (("good", "new.txt"), ("bad", "README.md")):
        fork = f"{name}-{suffix}"
        server.result("POST", f"/namespaces/team/repos/{name}/fork", {"name": fork})
        server.wait_ready(fork)
        write(fork, path, "theirs\n")
    write(name, "README.md", "ours\n")
    base = f"/ui/ns/team/{name}"
    assert f"{base}/compare" in visitor.get(f"{base}-good").text
    page = visitor.get(f"{base}/compare", params={"head_repo": f"team/{name}-good"}).text
    assert "1 commit ahead" in page and "nothing conflicts" in page and "+theirs" in page
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
    log = f"/namespaces/team/repos/{name}/log"
    before = server.result("GET", log)[0]["hash"]
    elsewhere = {"Origin": "https://evil.example"}
    assert visitor.post(f"{base}/merge", data=fields, headers=elsewhere).status_code == 403
    late = visitor.post(f"{base}/merge", data={**fields, "expected": "1" * 40})
    assert late.status_code == 409
    assert server.result("GET", log)[0]["hash"] == before
    done = visitor.post(f"{base}/merge", data={**fields, "message": "Take it\r\n\r\nAll"})
    assert done.status_code == 200 and "Merged" in done.text
    top = server.result("GET", log)[0]
    assert (top["message"], top["parents"][0]) == ("Take it\n\nAll", before)
    page = visitor.get(f"{base}/compare", params={"head_repo": f"team/{name}-bad"}).text
    assert "one file conflicts" in page and "README.md" in page and 'action="' in page
    assert f'action="{base}/merge"' not in page
