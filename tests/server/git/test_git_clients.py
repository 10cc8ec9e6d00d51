"""What git users do: push, clone, fetch, partial and shallow clones, notes, force, deletion."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from artifactfs.pktline import DELIM, FLUSH, encode
from tests.server.running import Git, Server, with_token


def pushed(server: Server, git: Git, work: Path, name: str) -> str:
    """Push `work` to a new repository; the remote with its write token."""
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    return remote


@pytest.mark.parametrize("version", [0, 1, 2])
def test_clone_by_each_protocol(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path, version: int
) -> None:
    remote = pushed(server, git, work, name)
    git("-c", f"protocol.version={version}", "clone", "-q", remote, tmp_path / "copy")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "copy") == git("rev-parse", "HEAD", cwd=work)
    assert (tmp_path / "copy" / "src" / "app.py").read_text() == "print('two')\n"


def test_fetch_brings_only_what_is_new(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    git("clone", "-q", remote, tmp_path / "copy")
    (work / "new.txt").write_text("new\n")
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Third", cwd=work)
    git("push", "-q", remote, "main", cwd=work)
    git("pull", "-q", cwd=tmp_path / "copy")
    assert (tmp_path / "copy" / "new.txt").read_text() == "new\n"


def test_partial_clone_fetches_blobs_when_they_are_needed(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    copy = tmp_path / "copy"
    git("clone", "-q", "--filter=blob:none", "--no-checkout", remote, copy)
    missing = git("rev-list", "--objects", "--all", "--missing=print", cwd=copy)
    assert missing.count("?") == 5
    before = len(server.requests())
    assert git("show", "HEAD~1:src/app.py", cwd=copy) == "print('one')\n"
    fetches = [r for r in server.requests()[before:] if r.get("command") == "fetch"]
    assert [r["wants"] for r in fetches] == [1]
    assert fetches[0]["oids"] == [git("rev-parse", "HEAD~1:src/app.py", cwd=work).strip()]


def test_blobs_come_one_by_one_and_together(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    """Few small ones are packed by the server itself, many or large ones by git."""
    contents = {f"small{number}": b"%d\n" % number * number for number in range(50)}
    contents |= {"empty": b"", "large": bytes(range(256)) * 8_000, "page": b"x" * 65_600}
    for file, content in contents.items():
        (work / file).write_bytes(content)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Contents", cwd=work)
    remote = pushed(server, git, work, name)
    copy = tmp_path / "copy"
    git("clone", "-q", "--filter=blob:none", "--no-checkout", remote, copy)
    for file in ("empty", "small49", "large", "page"):
        done = subprocess.run(
            ["git", "cat-file", "blob", f"HEAD:{file}"], cwd=copy, capture_output=True, check=True
        )
        assert done.stdout == contents[file]
    git("checkout", "-q", "main", cwd=copy)
    assert {f: (copy / f).read_bytes() for f in contents} == contents
    git("fsck", "--full", cwd=copy)


def test_shallow_clone_and_unshallow(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    copy = tmp_path / "copy"
    git("clone", "-q", "--depth", "1", remote, copy)
    assert git("rev-list", "--count", "HEAD", cwd=copy) == "1\n"
    git("fetch", "-q", "--unshallow", cwd=copy)
    assert git("rev-list", "--count", "HEAD", cwd=copy) == "2\n"


def test_a_ref_can_be_wanted_by_its_name_though_that_is_not_advertised(
    server: Server, git: Git, work: Path, name: str
) -> None:
    """Advertised, it would break `git clone --depth` of 2.39."""
    remote = pushed(server, git, work, name)
    headers = {"Git-Protocol": "version=2", "Content-Type": "application/x-git-upload-pack-request"}
    lines = (b"deepen 1\n", b"filter blob:none\n", b"want-ref HEAD\n", b"done\n")
    body = encode([b"command=fetch\n", DELIM, *lines, FLUSH])
    with httpx.Client(headers=headers, timeout=60) as client:
        offered = client.get(f"{remote}/info/refs?service=git-upload-pack").content
        answer = client.post(f"{remote}/git-upload-pack", content=body).content
    assert b"ref-in-want" not in offered
    head = git("rev-parse", "HEAD", cwd=work).strip()
    assert f"wanted-refs\n0032{head} HEAD".encode() in answer
    assert b"PACK" in answer


def test_any_oid_can_be_wanted_by_protocol_0(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    tree = git("rev-parse", "HEAD^{tree}", cwd=work).strip()
    copy = tmp_path / "copy"
    git("init", "-q", copy)
    git("-c", "protocol.version=0", "fetch", "-q", remote, tree, cwd=copy)
    assert "app.py" in git("ls-tree", "-r", tree, cwd=copy)


def test_notes_are_pushed_and_fetched(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    git("notes", "add", "-m", "prompt: make it so", cwd=work)
    git("push", "-q", remote, "refs/notes/*", cwd=work)
    copy = tmp_path / "copy"
    git("clone", "-q", remote, copy)
    git("fetch", "-q", "origin", "refs/notes/*:refs/notes/*", cwd=copy)
    assert git("notes", "show", "HEAD", cwd=copy) == "prompt: make it so\n"


def test_force_push_and_deletion(server: Server, git: Git, work: Path, name: str) -> None:
    remote = pushed(server, git, work, name)
    git("commit", "-q", "--amend", "-m", "Other", cwd=work)
    assert "rejected" in git("push", remote, "main", cwd=work, fails=True)
    git("push", "-q", "--force", remote, "main", cwd=work)
    git("push", "-q", remote, "main:refs/heads/side", cwd=work)
    git("push", "-q", "--delete", remote, "side", cwd=work)
    git("push", "-q", "--delete", remote, "main", cwd=work)
    assert git("ls-remote", remote, cwd=work) == ""


def test_of_concurrent_pushes_exactly_one_wins(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    copies = []
    for number in range(6):
        copy = tmp_path / f"copy{number}"
        git("clone", "-q", remote, copy)
        (copy / "mine.txt").write_text(f"{number}\n")
        git("add", "-A", cwd=copy)
        git("commit", "-q", "-m", f"by {number}", cwd=copy)
        copies.append(copy)

    def push(copy: Path) -> bool:
        done = subprocess.run(
            ["git", "push", "-q", "origin", "HEAD:main"], cwd=copy, capture_output=True, check=False
        )
        return done.returncode == 0

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(push, copies))
    assert won.count(True) == 1
    tip = git("ls-remote", remote, "main", cwd=work).split()[0]
    assert tip == git("rev-parse", "HEAD", cwd=copies[won.index(True)]).strip()


def test_a_large_push_comes_in_chunks_and_back(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    remote = pushed(server, git, work, name)
    content = b"".join(number.to_bytes(8, "big") * 3 for number in range(200_000))
    (work / "big.bin").write_bytes(content)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Big", cwd=work)
    git("-c", "http.postBuffer=65536", "push", "-q", remote, "main", cwd=work)
    git("clone", "-q", remote, tmp_path / "copy")
    assert (tmp_path / "copy" / "big.bin").read_bytes() == content


def test_compressed_request_bodies(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    """git gzips a request that is larger than a kilobyte: here, many things it already has."""
    remote = pushed(server, git, work, name)
    copy = tmp_path / "copy"
    git("clone", "-q", remote, copy)
    for number in range(40):
        git("commit", "-q", "--allow-empty", "-m", f"local {number}", cwd=copy)
    (work / "more.txt").write_text("more\n")
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "More", cwd=work)
    git("push", "-q", remote, "main", cwd=work)
    before = len(server.requests())
    git("fetch", "-q", "origin", cwd=copy)
    posts = [r for r in server.requests()[before:] if r.get("command") == "fetch"]
    assert posts and all(r["status"] == 200 for r in posts)


def test_a_broken_object_is_refused_and_nothing_is_left(
    server: Server, git: Git, work: Path, name: str
) -> None:
    remote = pushed(server, git, work, name)
    tree = git("rev-parse", "HEAD^{tree}", cwd=work).strip()
    raw = f"tree {tree}\nauthor no mail at all\ncommitter x <x> 1 +0000\n\nbad\n"
    done = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--stdin", "--literally"],
        input=raw,
        text=True,
        capture_output=True,
        cwd=work,
        check=True,
    )
    error = git("push", remote, f"{done.stdout.strip()}:refs/heads/bad", cwd=work, fails=True)
    assert "unpack" in error or "fsck" in error
    assert "refs/heads/bad" not in git("ls-remote", remote, cwd=work)
