"""SIGKILL at random moments: every repository is as before or after, and passes fsck."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import wait_until
from tests.server.running import Git, Server, ServerFactory, git_environment, with_token


@dataclass
class Model:
    """What the client was told, and what it asked for without hearing the answer."""

    present: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    tips: dict[str, set[str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    done: int = 0


class Workload:
    """Pushes, forks, deletes and tokens, one after another, until the server is gone."""

    def __init__(self, server: Server, work: Path, model: Model, seed: int) -> None:
        self.server, self.work, self.model = server, work, model
        self.random = random.Random(seed)
        self.number = 0
        self.seed = seed
        self.environment = git_environment(work.parent / "home")

    def run(self) -> None:
        try:
            while True:
                self.step()
                self.model.done += 1
        except (httpx.HTTPError, ConnectionError):
            return

    def step(self) -> None:
        choices = [self.push, self.push, self.fork, self.fork, self.delete, self.token]
        self.random.choice(choices)()

    def _some(self) -> str:
        return self.random.choice(sorted(self.model.present))

    def _git(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def push(self) -> None:
        name = self._some()
        self.number += 1
        (self.work / f"file{self.seed}").write_text(f"{self.seed} {self.number} " * 500)
        self._git("add", "-A")
        self._git("commit", "-q", "-m", f"{self.seed}.{self.number}")
        tip = self._git("rev-parse", "HEAD").stdout.strip()
        before = set(self.model.tips[name])
        self.model.tips[name] = before | {tip}
        remote = with_token(f"{self.server.url}/git/team/{name}.git", self.model.tokens[name])
        pushed = self._git("push", "-q", "--force", remote, "HEAD:refs/heads/main")
        if pushed.returncode == 0:
            self.model.tips[name] = {tip}
        elif self.server.process is None or self.server.process.poll() is not None:
            raise ConnectionError

    def fork(self) -> None:
        parent = self._some()
        self.number += 1
        name = f"f{self.seed}-{self.number:04}"
        self.model.unsure.add(name)
        made = self.server.result("POST", f"/namespaces/team/repos/{parent}/fork", {"name": name})
        self.model.unsure.discard(name)
        self.model.present.add(name)
        self.model.tips[name] = set(self.model.tips[parent])
        self.model.tokens[name] = made["token"]

    def delete(self) -> None:
        if len(self.model.present) < 4:
            return
        name = self._some()
        self.model.present.discard(name)
        self.model.unsure.add(name)
        self.server.result("DELETE", f"/namespaces/team/repos/{name}")
        self.model.unsure.discard(name)

    def token(self) -> None:
        name = self._some()
        made = self.server.result("POST", "/namespaces/team/tokens", {"repo": name})
        self.model.tokens[name] = made["plaintext"]


def check(server: Server, model: Model, git: Git) -> None:
    listed = server.result("GET", "/namespaces/team/repos", limit=200)
    names = {repo["name"] for repo in listed}
    assert model.present <= names, model.present - names
    assert names <= model.present | model.unsure, names - model.present - model.unsure
    for repo in listed:
        server.wait_ready(repo["name"])
    assert "0 problems" in server.command("fsck")
    for name in model.present & names:
        remote = with_token(f"{server.url}/git/team/{name}.git", model.tokens[name])
        tip = git("ls-remote", remote, "refs/heads/main").split("\t")[0]
        assert tip in model.tips[name], name
        model.tips[name] = {tip}
    for name in model.unsure & names:
        if name in model.tokens:  # a delete that did not happen: the token must still work
            git("ls-remote", with_token(f"{server.url}/git/team/{name}.git", model.tokens[name]))
            model.present.add(name)
        else:
            server.result("DELETE", f"/namespaces/team/repos/{name}")
    model.unsure.clear()
    stored = [p.name for p in server.data.glob("repos/*/*.git")]
    assert len(stored) == len(server.result("GET", "/namespaces/team/repos", limit=200))


def run_rounds(server: Server, git: Git, work: Path, *, kills: int, operations: int) -> int:
    model = Model()
    made = server.create("origin-repo")
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    tip = git("rev-parse", "main", cwd=work).strip()
    model.present.add("origin-repo")
    model.tips["origin-repo"] = {tip}
    model.tokens["origin-repo"] = made["token"]
    generator = random.Random(1)
    rounds = 0
    while rounds < kills or model.done < operations:
        workload = Workload(server, work, model, rounds)
        thread = threading.Thread(target=workload.run)
        thread.start()
        time.sleep(generator.uniform(0.05, 0.7))
        server.kill()
        thread.join()
        rounds += 1
        server.start()
        check(server, model, git)
    print(f"{model.done} operations, {rounds} kills, {len(model.present)} repositories left")
    return model.done


def test_a_few_kills(start_server: ServerFactory, git: Git, work: Path) -> None:
    server = start_server()
    assert run_rounds(server, git, work, kills=3, operations=1) > 0


def stray_folder(server: Server, repo_id: str) -> Path:
    stray = server.data / "repos" / repo_id[:2] / f"{repo_id}.git"
    stray.mkdir(parents=True)
    return stray


def test_a_start_looks_at_what_was_being_written_to_and_at_nothing_else(
    start_server: ServerFactory, git: Git, work: Path
) -> None:
    """So that it takes as long with 10,000 repositories as with one."""
    server = start_server()
    if server.database is not None:
        pytest.skip("its marks are those of several servers: see tests/server/cluster")
    made = server.create("kept")
    assert server.stop() == 0
    assert (server.data / "clean").exists()
    assert list((server.data / "open").iterdir()) == []
    begun, other = (
        stray_folder(server, "zz00000000000000"),
        stray_folder(server, "yy0000000000000a"),
    )
    server.start()
    assert begun.exists() and not (server.data / "clean").exists()
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    assert [mark.name for mark in (server.data / "open").iterdir()] == [made["id"]]
    gitdir = next(server.data.glob(f"repos/*/{made['id']}.git"))
    (gitdir / "objects" / "tmp_objdir-x").mkdir()
    (gitdir / "refs" / "heads" / "main.lock").touch()
    (gitdir / "HEAD").write_text("")
    server.kill()
    (server.data / "open" / begun.name.removesuffix(".git")).touch()
    server.start()
    assert not begun.exists() and other.exists()
    assert not (gitdir / "objects" / "tmp_objdir-x").exists()
    assert "refs/heads/main" in git("ls-remote", with_token(made["remote"], made["token"]))
    git("push", "-q", with_token(made["remote"], made["token"]), "main:more", cwd=work)
    server.kill()
    shutil.rmtree(server.data / "open")  # as of an older server: everything is looked at
    server.start()
    assert not other.exists()


@pytest.mark.parametrize("way", ["missing", "empty", "a page"])
def test_repositories_outlive_their_database(
    start_server: ServerFactory, git: Git, work: Path, way: str
) -> None:
    """A new one would know none of them: they would go as what a crash has left."""
    server = start_server()
    if server.database is not None:
        pytest.skip("its database is elsewhere")
    made = server.create("precious")
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    server.kill()
    shutil.rmtree(server.data / "open")  # as of an older server: everything is looked at
    database = server.data / "metadata.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        root = "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'repos' AND type = 'index'"
        pages = [page for (page,) in connection.execute(root)]
    kept = database.read_bytes()
    if way == "missing":
        database.unlink()
    elif way == "empty":
        os.truncate(database, 0)
    else:
        content = bytearray(kept)
        for page in pages:  # of the repositories' indexes, made empty ones: nothing is found
            at = (page - 1) * page_size
            content[at : at + page_size] = b"\x0a" + bytes(4) + b"\x10\0" + bytes(page_size - 7)
        database.write_bytes(content)
    with pytest.raises(AssertionError):  # it ends before it answers
        server.start()
    assert "error: " + str(database) in server.errors() and "from a backup" in server.errors()
    database.write_bytes(kept)
    server.start()
    assert "refs/heads/main" in git("ls-remote", remote)


def lists(remote: str) -> bool:
    return not subprocess.run(["git", "ls-remote", remote], capture_output=True).returncode


def test_a_power_failure_that_emptied_new_files(start_server: ServerFactory, git: Git) -> None:
    server = start_server()
    made = server.create("fresh")
    server.kill()
    gitdir = next(server.data.glob("repos/*/*.git"))
    (gitdir / "HEAD").write_text("")
    (gitdir / "config").unlink()
    server.start()
    remote = with_token(made["remote"], made["token"])
    # With PostgreSQL it is mended when the place of the killed server is taken over: after 10 s.
    wait_until(lambda: lists(remote), "the repository is mended")
    assert "0 problems" in server.command("fsck")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB, at the place where the first server of `start_server` has its data."""
    disk = tmp_path / "server0" / "data"
    disk.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_ends_nothing(
    small_disk: Path, start_server: ServerFactory, git: Git, work: Path
) -> None:
    server = start_server()
    made = server.create("kept")
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    with (small_disk / "filling").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    codes = {
        server.api("POST", "/namespaces/team/repos", {"name": f"more-{n}"}).status_code
        for n in range(10)
    }
    assert 500 in codes and codes <= {201, 500}
    assert "rejected" in git("push", remote, "main:refs/heads/more", cwd=work, fails=True)
    assert server.api("GET", "/usage").status_code == 200  # writes pending events down, or not
    (small_disk / "filling").unlink()
    git("push", "-q", remote, "main:refs/heads/more", cwd=work)
    assert server.create("again")["token"]
    assert "0 problems" in server.command("fsck")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_operations(start_server: ServerFactory, git: Git, work: Path) -> None:
    server = start_server()
    assert run_rounds(server, git, work, kills=40, operations=100) >= 100
