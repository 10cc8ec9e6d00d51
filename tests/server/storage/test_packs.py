"""Many small pushes leave few packs; whoever reads meanwhile is not disturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactfs.server.storage.packs import oids_of, pack_files, packs_to_roll_up, small_packs
from artifactfs.system.locks import locked
from tests.e2e.processes import wait_until
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


def with_pushes(server: Server, git: Git, work: Path, name: str) -> tuple[str, Path]:
    """A new repository with five packs: its remote, and its objects."""
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    push_many(git, work, remote, 5)
    return remote, objects_of(server, made)


def packs_in(objects: Path) -> set[str]:
    return set(pack_files(objects))


def wait_for_few(objects: Path) -> int:
    wait_until(lambda: len(packs_in(objects)) < 10, "few packs")
    return len(packs_in(objects))


def test_packs_are_put_together(
    server: Server, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    push_many(git, work, remote)
    assert wait_for_few(objects_of(server, made)) < 10
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
        assert wait_for_few(objects_of(server, info)) < 10
    git("clone", "-q", with_token(child["remote"], child["token"]), tmp_path / "copy")
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "copy") == f"{2 + 3 + PUSHES}\n"
    git(f"--git-dir={objects_of(server, info).parent}", "fsck", "--full", "--strict")


def test_what_cannot_be_read_is_left_as_it_is(
    server: Server, git: Git, work: Path, name: str
) -> None:
    remote, objects = with_pushes(server, git, work, name)
    broken = small_packs(objects)[0].name
    path = objects / "pack" / f"{broken}.pack"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:40])
    # The tip alone is pushed on: what is damaged is history, which nobody reads here.
    for number in range(8):
        git("push", "-q", remote, f"HEAD:refs/heads/side{number}", cwd=work)
        git("commit", "-q", "--allow-empty", "-m", f"Side {number}", cwd=work)
    wait_until(lambda: "are not put together" in server.errors(), "the log")
    assert f"packs of {objects.parent.stem} are not put together for an hour" in server.errors()
    assert path.stat().st_size == 40 and broken in packs_in(objects)
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
    remote, objects = with_pushes(shared, git, work, "shared-packs")
    before = {name: objects / "pack" / f"{name}.pack" for name in packs_in(objects)}
    contents = {name: path.read_bytes() for name, path in before.items()}
    push_many(git, work, remote)
    wait_for_few(objects)
    kept = {path.name: path for path in shared.data.glob("trash/packs.*/*.pack")}
    gone = [name for name, path in before.items() if not path.exists()]
    assert gone
    assert all(kept[f"{name}.pack"].read_bytes() == contents[name] for name in gone)

    rest = packs_in(objects)
    assert len(rest) > 1
    shared.command("gc")
    assert len(packs_in(objects)) == 1
    names = {path.stem for path in shared.data.glob("trash/packs.*/*.pack")}
    assert rest <= names | packs_in(objects)
    # After two hours the next start takes it away.
    for place in shared.data.glob("trash/packs.*"):
        os.utime(place, (1, 1))
    shared.stop()
    shared.start()
    wait_until(lambda: not any(shared.data.glob("trash/packs.*")), "its removal", deadline=60)
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
    assert [pack.name for pack in packs_to_roll_up(small_packs(tmp_path))] == names[:rolled]


@pytest.mark.parametrize("suffix", [".keep", ".mtimes", ".bitmap", None])
def test_what_is_left_alone(tmp_path: Path, suffix: str | None) -> None:
    names = make_packs(tmp_path, [1, 1, 1])
    if suffix is None:  # a pool has it
        os.link(tmp_path / "pack" / f"{names[0]}.pack", tmp_path / "pool.pack")
    else:
        (tmp_path / "pack" / f"{names[0]}{suffix}").touch()
    assert [pack.name for pack in packs_to_roll_up(small_packs(tmp_path))] == names[1:]


def test_objects_in_the_order_of_the_pack(git: Git, work: Path) -> None:
    git("repack", "-a", "-d", "-q", cwd=work)
    objects = work / ".git" / "objects"
    pack = small_packs(objects)[0]
    shown = git("verify-pack", "-v", objects / "pack" / f"{pack.name}.idx", cwd=work)
    lines = [words for line in shown.splitlines() if len((words := line.split() or [""])[0]) == 40]
    expected = [words[0] for words in sorted(lines, key=lambda words: int(words[4]))]
    assert [oid.hex() for oid in oids_of(objects, pack)] == expected
    index = objects / "pack" / f"{pack.name}.idx"
    index.chmod(0o600)
    os.truncate(index, 1_100)
    with pytest.raises(ValueError, match="is damaged"):
        oids_of(objects, pack)


def test_who_holds_the_lock_is_not_disturbed(
    server: Server, git: Git, work: Path, name: str
) -> None:
    """`gc` and the servers replace the packs of a repository one after the other."""
    remote, objects = with_pushes(server, git, work, name)
    with locked(objects.parent / "repacking"):
        push_many(git, work, remote, 12)
        time.sleep(1)
        assert len(packs_in(objects)) >= 17
    git("commit", "-q", "--allow-empty", "-m", "One more", cwd=work)
    git("push", "-q", remote, "HEAD:main", cwd=work)
    assert wait_for_few(objects) < 10
