"""API tokens for some namespaces, and the repositories of all that a token is for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.server.running import ACCOUNT, Server


@pytest.fixture
def spaces() -> tuple[str, str]:
    unique = os.urandom(3).hex()
    return f"one-{unique}", f"two-{unique}"


@pytest.fixture
def limited(server: Server, spaces: tuple[str, str]) -> Iterator[httpx.Client]:
    """A client with an edit token for the first of the two namespaces."""
    words = ["token", "create", "-q", "--account", ACCOUNT, "--namespace", spaces[0]]
    with server.client(server.command(*words).strip()) as client:
        client.base_url = httpx.URL(server.url + server.base)
        yield client


def test_all_namespaces_in_one_list(server: Server, spaces: tuple[str, str]) -> None:
    for number, space in enumerate((*spaces, spaces[0])):
        server.create(f"listed-{spaces[0]}-{number}", namespace=space)
    params = {"search": f"listed-{spaces[0]}", "sort": "name", "direction": "asc", "limit": 2}
    first = server.api("GET", "/repos", None, **params).json()
    cursor = first["result_info"]["cursor"]
    rest = server.api("GET", "/repos", None, cursor=cursor, **params).json()
    found = [(repo["namespace"], repo["name"][-1]) for repo in first["result"] + rest["result"]]
    assert found == [(spaces[0], "0"), (spaces[1], "1"), (spaces[0], "2")]
    assert first["result_info"]["total_count"] == 3 and rest["result_info"]["cursor"] is None


def test_a_limited_token_sees_its_namespaces(
    server: Server, limited: httpx.Client, spaces: tuple[str, str]
) -> None:
    one, two = spaces
    server.create("task", namespace=two)
    assert limited.post(f"/namespaces/{one}/repos", json={"name": "task"}).status_code == 201
    assert [repo["namespace"] for repo in limited.get("/repos").json()["result"]] == [one]
    listed = limited.get("/namespaces").json()
    assert [each["namespace"] for each in listed["result"]] == [one]
    assert listed["result_info"]["total_count"] == 1
    here, there = f"/namespaces/{one}/repos/task", f"/namespaces/{two}/repos/task"
    refused = [
        limited.get(f"/namespaces/{two}"),
        limited.get(f"/namespaces/{two}/repos"),
        limited.get(there),
        limited.delete(there),
        limited.post(f"/namespaces/{two}/tokens", json={"repo": "task"}),
        limited.post("/namespaces", json={"namespace": two}),
        limited.post(f"{here}/fork", json={"name": "away", "namespace": two}),
        limited.get(f"{here}/compare", params={"head_repo": f"{two}/task"}),
        limited.post(f"{here}/merge", json={"head": "main", "head_repo": f"{two}/task"}),
        limited.get("/usage"),
        limited.post("/webhooks", json={"url": "http://127.0.0.1:9/"}),
        limited.post(f"{server.url}/client/v4/graphql", json={"query": "{ viewer { x } }"}),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    base = f"{server.url}/v1/api/namespaces"
    assert limited.get(f"{base}/{two}/repos/task").status_code == 403
    assert limited.get(f"{base}/{one}/repos/task").status_code == 200


def test_webhooks_of_a_limited_token(
    server: Server, limited: httpx.Client, spaces: tuple[str, str]
) -> None:
    body = {"url": "http://127.0.0.1:9/hook"}
    others = server.result("POST", "/webhooks", {**body, "namespace": spaces[1]})["id"]
    mine = limited.post("/webhooks", json={**body, "namespace": spaces[0]}).json()["result"]["id"]
    assert [each["id"] for each in limited.get("/webhooks").json()["result"]] == [mine]
    assert limited.delete(f"/webhooks/{others}").status_code == 403
    assert limited.delete(f"/webhooks/{mine}").status_code == 200


def test_the_page_of_a_limited_token(server: Server, spaces: tuple[str, str]) -> None:
    for space in spaces:
        server.create("task", namespace=space)
    words = ["token", "create", "-q", "--account", ACCOUNT, "--namespace", spaces[0]]
    token = server.command(*words).strip()
    with httpx.Client(base_url=server.url, follow_redirects=True, timeout=60) as visitor:
        page = visitor.post("/ui/login", data={"token": token}).text
        assert spaces[0] in page and spaces[1] not in page
        assert visitor.get(f"/ui/ns/{spaces[0]}/task").status_code == 200
        assert visitor.get(f"/ui/ns/{spaces[1]}/task").status_code == 403
        assert visitor.get("/ui/activity").status_code == 403


def test_the_list_of_tokens_says_what_they_are_for(server: Server) -> None:
    made = server.command("token", "create", "--namespace", "some-ns", "--namespace", "other-ns")
    assert "namespaces  other-ns, some-ns" in made
    assert "(other-ns, some-ns)" in server.command("token", "list")


def test_a_token_for_the_environment(server: Server) -> None:
    """As examples and clients read it: `eval "$(artifacts-server token create --env)"`."""
    line = server.command("token", "create", "--env", "--account", ACCOUNT)
    command = f'{line.strip()}; printf "%s %s" "$ARTIFACTS_ACCOUNT" "$ARTIFACTS_API_TOKEN"'
    account, token = subprocess.check_output(["sh", "-c", command], text=True).split()
    assert account == ACCOUNT and token.startswith("aft_")
