"""Many small pushes leave few packs; whoever reads meanwhile is not disturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactfs.server.storage.packs import Pack, list_packs, packs_to_roll_up
from tests.server.postgres import PostgresServer
from tests.server.running import Git, Server, with_token

PUSHES = 24


def objects_of(server: Server, repo: dict[str, object]) -> Path:
    identity = str(repo["id"])
    return next(server.data.glob(f"repos/*/{identity}.git")) / "objects"


def push_many(git: Git, work: Path, remote: str, count: int = PUSHES) -> None:
    for number in range(count):
        (work / f"new{number}").write_bytes(os.urandom(100))
        git("add", "-A", cwd=work)
        git("commit", "-q", "-m", f"Number {number}", cwd=work)
        git("push", "-q", remote, "HEAD:main", cwd=work)


def wait_for_few(objects: Path) -> list[Pack]:
    deadline = time.monotonic() + 60
    while len(packs := list_packs(objects)) >= 10 and time.monotonic() < deadline:
        time.sleep(0.1)
    return packs


def test_packs_are_put_together(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    push_many(git, work, remote)
    assert len(wait_for_few(objects_of(server, made))) < 10
    git("clone", "-q", remote, tmp_path / "copy")
    heads = [git("rev-parse", "HEAD", cwd=tree) for tree in (tmp_path / "copy", work)]
    assert heads[0] == heads[1]
    git("fsck", "--full", "--strict", cwd=tmp_path / "copy")
    git(f"--git-dir={objects_of(server, made).parent}", "fsck", "--full", "--strict")


def test_in_a_repository_that_borrows(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    push_many(git, work, remote, 3)
    child = server.result("POST", f"/namespaces/team/repos/{name}/fork", {"name": f"{name}-f"})
    server.wait_ready(f"{name}-f")
    for each in (child, made):
        push_many(git, work, with_token(each["remote"], each["token"]))
        info = server.result("GET", f"/namespaces/team/repos/{each['name']}")
        assert len(wait_for_few(objects_of(server, info))) < 10
    git("clone", "-q", with_token(child["remote"], child["token"]), tmp_path / "copy")
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "copy") == f"{2 + 3 + PUSHES}\n"
    git(f"--git-dir={objects_of(server, info).parent}", "fsck", "--full", "--strict")


def test_what_cannot_be_read_is_left_as_it_is(
    server: Server, git: Git, work: Path, name: str
) -> None:
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    push_many(git, work, remote, 5)
    objects = objects_of(server, made)
    broken = list_packs(objects)[0]
    path = objects / "pack" / f"{broken.name}.pack"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:40])
    # The tip alone is pushed on: what is damaged is history, which nobody reads here.
    for number in range(8):
        git("push", "-q", remote, f"HEAD:refs/heads/side{number}", cwd=work)
        git("commit", "-q", "--allow-empty", "-m", f"Side {number}", cwd=work)
    deadline = time.monotonic() + 30
    while "are not put together" not in server.errors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert f"packs of {made['id']} are not put together until the next start" in server.errors()
    assert path.stat().st_size == 40 and broken.name in {p.name for p in list_packs(objects)}
    server.result("DELETE", f"/namespaces/team/repos/{name}")


@pytest.fixture
def shared(tmp_path: Path, postgres: PostgresServer) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    one = Server(folder, [], database=postgres.new_database())
    one.command("migrate")
    yield one.start()
    if one.process is not None:
        one.kill()


def test_others_may_have_it_open(shared: Server, git: Git, work: Path, tmp_path: Path) -> None:
    """What other machines read is removed from its place, and not from the disk."""
    made = shared.create("shared-packs")
    remote = with_token(made["remote"], made["token"])
    push_many(git, work, remote, 5)
    objects = objects_of(shared, made)
    before = {p.name: (objects / "pack" / f"{p.name}.pack") for p in list_packs(objects)}
    contents = {name: path.read_bytes() for name, path in before.items()}
    push_many(git, work, remote)
    wait_for_few(objects)
    kept = {path.name: path for path in shared.data.glob("trash/packs.*/*.pack")}
    gone = [name for name, path in before.items() if not path.exists()]
    assert gone
    assert all(kept[f"{name}.pack"].read_bytes() == contents[name] for name in gone)

    rest = {p.name for p in list_packs(objects)}
    assert len(rest) > 1
    shared.command("gc")
    assert len(list_packs(objects)) == 1
    names = {path.stem for path in shared.data.glob("trash/packs.*/*.pack")}
    assert rest <= names | {p.name for p in list_packs(objects)}
    # After two hours the next start takes it away.
    for place in shared.data.glob("trash/packs.*"):
        os.utime(place, (1, 1))
    shared.stop()
    shared.start()
    deadline = time.monotonic() + 30
    while any(shared.data.glob("trash/packs.*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(shared.data.glob("trash/packs.*"))
    git("clone", "-q", remote, tmp_path / "copy")


def make_packs(objects: Path, sizes: list[int]) -> list[str]:
    folder = objects / "pack"
    folder.mkdir(parents=True)
    names = [f"pack-{number:040x}" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        os.truncate(os.open(folder / f"{name}.pack", os.O_CREAT | os.O_WRONLY), size)
        (folder / f"{name}.idx").touch()
    return names


@pytest.mark.parametrize(
    ("sizes", "rolled"),
    [
        ([], 0),
        ([5], 0),
        ([1, 3, 9, 27], 0),
        ([1, 1], 2),
        ([1, 1, 1_000], 2),
        ([1, 1, 1_000, 1_000], 4),
        ([1, 3, 3, 1_000], 3),
    ],
)
def test_the_large_ones_stay(tmp_path: Path, sizes: list[int], rolled: int) -> None:
    names = make_packs(tmp_path, sizes)
    assert [pack.name for pack in packs_to_roll_up(tmp_path)] == names[:rolled]


@pytest.mark.parametrize("suffix", [".keep", ".mtimes", ".bitmap"])
def test_what_is_left_alone(tmp_path: Path, suffix: str) -> None:
    names = make_packs(tmp_path, [1, 1, 1])
    (tmp_path / "pack" / f"{names[0]}{suffix}").touch()
    assert [pack.name for pack in packs_to_roll_up(tmp_path)] == names[1:]
