"""Who may do what, and where secrets must not be."""

from __future__ import annotations

import base64
import sqlite3
import time
from pathlib import Path

import httpx
import pytest

from artifactfs.server.events.network_guard import is_public
from artifactfs.server.metadata import tokens
from tests.server.running import Git, Server, ServerFactory, with_token


def refs(
    remote: str, authorization: str | None, service: str = "git-upload-pack"
) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return httpx.get(
        f"{remote}/info/refs", params={"service": service}, headers=headers, timeout=60
    )


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_every_form_of_a_token(server: Server, name: str) -> None:
    made = server.create(name)
    full, bare = made["token"], made["token"].partition("?")[0]
    for secret in (full, bare):
        for header in (f"Bearer {secret}", basic("x", secret), basic("", secret)):
            assert refs(made["remote"], header).status_code == 200
    short = made["remote"].replace("/git/", "/")
    assert refs(short, f"Bearer {full}").status_code == 200


def test_who_is_refused(server: Server, name: str) -> None:
    made = server.create(name)
    other = server.create(f"{name}-o")
    nobody = refs(made["remote"], None)
    assert nobody.status_code == 401
    assert nobody.headers["WWW-Authenticate"] == 'Basic realm="Artifacts"'
    token = made["token"]
    for header in (
        f"Bearer {other['token']}",
        f"Bearer {server.api_token}",
        f"Bearer {token[:-20]}",
        f"Bearer {token.upper()}",
        "Bearer",
        "Basic !!!",
        basic(token, ""),
        "Digest x",
        "Bearer art_v1_" + "f" * 40,
    ):
        answer = refs(made["remote"], header)
        assert (answer.status_code, answer.text) == (403, "Invalid or expired token\n"), header
    absent = made["remote"].replace(name, "no-such-repo")
    assert refs(absent, f"Bearer {token}").status_code == 403


def test_read_tokens_cannot_push(server: Server, git: Git, work: Path, name: str) -> None:
    made = server.create(name)
    read = server.result("POST", "/namespaces/team/tokens", {"repo": name, "scope": "read"})
    header = f"Bearer {read['plaintext']}"
    assert refs(made["remote"], header).status_code == 200
    push = refs(made["remote"], header, "git-receive-pack")
    assert (push.status_code, push.text) == (403, "Insufficient permissions\n")
    # Not through the side door either: the POST without the advertisement before it.
    direct = httpx.post(
        f"{made['remote']}/git-receive-pack",
        content=b"0000",
        headers={
            "Authorization": header,
            "Content-Type": "application/x-git-receive-pack-request",
        },
        timeout=60,
    )
    assert direct.status_code == 403


def test_revocation_is_immediate(server: Server, git: Git, name: str) -> None:
    made = server.create(name)
    token = server.result("POST", "/namespaces/team/tokens", {"repo": name})
    remote = with_token(made["remote"], token["plaintext"])
    git("ls-remote", remote)
    server.result("DELETE", f"/namespaces/team/tokens/{token['id']}")
    assert "403" in git("ls-remote", remote, fails=True)


@pytest.mark.files
def test_a_token_expires(start_server: ServerFactory) -> None:
    server = start_server()
    made = server.create("brief")
    header = f"Bearer {made['token']}"
    assert refs(made["remote"], header).status_code == 200
    with sqlite3.connect(server.data / "metadata.db", timeout=10) as db:
        db.execute("UPDATE tokens SET expires_at = ?", (int(time.time() * 1000) - 1,))
    db.close()
    assert refs(made["remote"], header).status_code == 403
    # What the token itself says of its end does not matter.
    longer = made["token"].partition("?")[0] + "?expires=9999999999"
    assert refs(made["remote"], f"Bearer {longer}").status_code == 403
    states = server.result("GET", "/namespaces/team/repos/brief/tokens", state="all")
    assert [token["state"] for token in states] == ["expired"]


def test_a_deleted_repository_has_no_tokens_any_more(server: Server, name: str) -> None:
    made = server.create(name)
    server.result("DELETE", f"/namespaces/team/repos/{name}")
    server.create(name)
    assert refs(made["remote"], f"Bearer {made['token']}").status_code == 403


def test_read_only_repositories_take_no_push(server: Server, name: str) -> None:
    made = server.create(name, read_only=True)
    header = f"Bearer {made['token']}"
    answer = refs(made["remote"], header, "git-receive-pack")
    assert (answer.status_code, answer.text) == (403, "The repository is read-only\n")


def test_anonymous_read_lets_git_fetch_and_nothing_else(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name, anonymous_read=True)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    git("clone", "-q", made["remote"], tmp_path / "copy")
    assert refs(made["remote"], None, "git-receive-pack").status_code == 401
    assert refs(made["remote"], "Bearer art_v1_" + "f" * 40).status_code == 403
    path = f"/v1/api/namespaces/team/repos/{name}"
    assert httpx.get(server.url + path, timeout=60).status_code == 403
    closed = server.result("PATCH", f"/namespaces/team/repos/{name}", {"anonymous_read": False})
    assert closed["anonymous_read"] is False
    assert refs(made["remote"], None).status_code == 401


@pytest.mark.files
def test_no_secret_on_disk_or_in_logs(
    start_server: ServerFactory, git: Git, work: Path, tmp_path: Path
) -> None:
    server = start_server("--log-level", "debug")
    made = server.create("quiet")
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    git("ls-remote", with_token(made["remote"], "art_v1_" + "e" * 40), fails=True)
    server.api("POST", "/namespaces/team/repos/copy/import", {"url": "https://u:pw-secret@h/x"})
    with server.client() as client:
        client.post("/ui/login", data={"token": server.api_token})
        client.get(f"/?token={server.api_token}")
    server.stop()
    secrets = [
        server.api_token,
        server.api_token.removeprefix("aft_"),
        made["token"].partition("?")[0],
        made["token"].partition("?")[0].removeprefix("art_v1_"),
        "e" * 40,
        "pw-secret",
    ]
    for file in server.root.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for secret in secrets:
                assert secret.encode() not in content, file
    assert tokens.digest(server.api_token).encode() in b"".join(
        file.read_bytes() for file in server.data.glob("metadata.db*")
    )


@pytest.mark.parametrize(
    "path",
    [
        "/git/../../etc/passwd/info/refs",
        "/git/%2e%2e/%2e%2e.git/info/refs",
        "/git/team/..%2f..%2fmetadata.db/info/refs",
        "/git/team/x.git/objects/info/packs",
        "/git/team/x.git/HEAD",
        "/git/team/x.git/../../../gitconfig",
        "/team/%00/info/refs",
        "/git/%00/x.git/info/refs",
        "/git/team/%00.git/git-upload-pack",
        "/ui/team/%00",
        "/%00/x",
        "/v1/api/namespaces/team/repos/%00",
        "/ui/style.css/../../metadata.db",
        "/ui/..%2f..%2fmetadata.db",
    ],
)
def test_paths_lead_nowhere(server: Server, path: str) -> None:
    """Sent as it is: clients would tidy it up."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        request = client.build_request("GET", "/", params={"service": "git-upload-pack"})
        request.url = request.url.copy_with(raw_path=path.encode() + b"?service=git-upload-pack")
        request.headers["Authorization"] = f"Bearer {server.api_token}"
        answer = client.send(request)
    assert answer.status_code in (400, 401, 403, 404), answer.text
    assert b"root:" not in answer.content and b"SQLite" not in answer.content


def test_comparison_does_not_depend_on_the_place_of_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, str]] = []

    def compare(left: str, right: str) -> bool:
        seen.append((left, right))
        return left == right

    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)
    assert tokens.same_digest("a" * 64, "a" * 64)
    assert seen == [("a" * 64, "a" * 64)]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("168.63.129.16", False),
        ("::7f00:1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
