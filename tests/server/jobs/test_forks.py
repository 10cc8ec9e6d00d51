"""Forks share objects with their ancestor, and need nothing of it afterwards."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from tests.server.running import Git, Server, with_token


def fork(server: Server, parent: str, child: str, **fields: object) -> dict[str, object]:
    made: dict[str, object] = server.result(
        "POST", f"/namespaces/team/repos/{parent}/fork", {"name": child, **fields}
    )
    return made


def pushed(server: Server, git: Git, work: Path, name: str) -> str:
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    return remote


def disk_bytes(server: Server) -> int:
    """Bytes of repositories and pools on disk, each inode once."""
    seen: dict[int, int] = {}
    both = (os.walk(server.data / part) for part in ("repos", "pools"))
    for folder, _, files in itertools.chain(*both):
        for file in files:
            status = os.stat(os.path.join(folder, file))
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def test_a_fork_has_everything_and_lives_on_its_own(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    git("tag", "v1", cwd=work)
    git("push", "-q", remote, "v1", "main:refs/heads/side", cwd=work)
    made = fork(server, name, f"{name}-f", description="a fork")
    assert made["objects"] and made["default_branch"] == "main"
    info = server.wait_ready(f"{name}-f")
    assert info["source"] == f"artifacts:team/{name}" and info["description"] == "a fork"

    child = with_token(str(made["remote"]), str(made["token"]))
    refs = git("ls-remote", child, cwd=work)
    assert refs == git("ls-remote", remote, cwd=work) and "refs/tags/v1" in refs

    git("commit", "-q", "--allow-empty", "-m", "In the fork", cwd=work)
    git("push", "-q", child, "main", cwd=work)
    assert git("ls-remote", child, "main") != git("ls-remote", remote, "main")

    server.result("DELETE", f"/namespaces/team/repos/{name}")
    git("clone", "-q", child, tmp_path / "copy")
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "copy") == "3\n"
    grandchild = fork(server, f"{name}-f", f"{name}-g")
    git("clone", "-q", with_token(str(grandchild["remote"]), str(grandchild["token"])), "deep")
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "deep") == "3\n"


def test_only_the_default_branch(server: Server, git: Git, work: Path, name: str) -> None:
    remote = pushed(server, git, work, name)
    git("push", "-q", remote, "main:refs/heads/side", cwd=work)
    made = fork(server, name, f"{name}-f", default_branch_only=True, read_only=True)
    child = with_token(str(made["remote"]), str(made["token"]))
    heads = [line.split("\t")[1] for line in git("ls-remote", child).splitlines()]
    assert heads == ["HEAD", "refs/heads/main"]
    assert "403" in git("push", child, "main:x", cwd=work, fails=True)


def test_a_fork_does_not_see_what_its_ancestor_gets_later(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    made = fork(server, name, f"{name}-f")
    (work / "secret.txt").write_text("later\n")
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Later", cwd=work)
    git("push", "-q", remote, "main", cwd=work)
    git("init", "-q", tmp_path / "probe")
    commit = git("rev-parse", "main", cwd=work).strip()
    child = with_token(str(made["remote"]), str(made["token"]))
    assert "not our ref" in git("fetch", child, commit, cwd=tmp_path / "probe", fails=True)


def test_many_forks_cost_no_data(server: Server, git: Git, work: Path, name: str) -> None:
    (work / "data.bin").write_bytes(os.urandom(3_000_000))
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Data", cwd=work)
    pushed(server, git, work, name)
    before = disk_bytes(server)
    pools = len(list((server.data / "pools").iterdir()))
    for number in range(10):
        fork(server, name, f"{name[:50]}-f{number}")
    grown = disk_bytes(server) - before
    assert grown < 1_000_000
    assert len(list((server.data / "pools").iterdir())) == pools + 1


def test_forking_what_is_empty_or_absent(server: Server, name: str) -> None:
    server.create(name)
    assert fork(server, name, f"{name}-f")["objects"] == 0
    answer = server.api("POST", "/namespaces/team/repos/absent/fork", {"name": "whatever"})
    assert answer.status_code == 404
    again = server.api("POST", f"/namespaces/team/repos/{name}/fork", {"name": name})
    assert again.status_code == 409
