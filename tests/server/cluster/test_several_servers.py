"""Several servers on the same data: one is killed, loses its database, comes back."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest

from tests.e2e.processes import wait_until
from tests.server.git.test_slow_clients import PUSH, ask, git_head
from tests.server.postgres import PostgresServer
from tests.server.running import SERVER, Git, Server, with_token

pytestmark = pytest.mark.timeout(300)
until = partial(wait_until, deadline=90)
T = TypeVar("T")


@pytest.fixture
def own_postgres(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """One that may be stopped."""
    own = PostgresServer()
    yield own
    own.remove()


def pair(root: Path, url: str, *options: str, count: int = 2) -> list[Server]:
    servers: list[Server] = []
    for number in range(count):
        folder = root / f"s{number}"
        folder.mkdir()
        token = servers[0].api_token if servers else ""
        server = Server(folder, list(options), database=url, api_token=token)
        server.shared_data = root / "data"
        if not servers:
            server.command("migrate")
        servers.append(server.start())
    return servers


@pytest.fixture
def two(tmp_path: Path, postgres: PostgresServer) -> Iterator[list[Server]]:
    """Two servers."""
    servers = pair(tmp_path, postgres.new_database(), "--allow-private-networks")
    yield servers
    for server in servers:
        if server.process is not None:
            server.kill()


def at(server: Server, made: dict[str, Any]) -> str:
    """The remote of a repository at a certain server."""
    path = made["remote"].partition("/git/")[2]
    return with_token(f"{server.url}/git/{path}", made["token"])


def test_what_one_does_the_other_shows(two: list[Server], git: Git, work: Path) -> None:
    one, other = two
    made = one.create("shared")
    git("push", "-q", at(other, made), "main", cwd=work)
    fork = one.result("POST", "/namespaces/team/repos/shared/fork", {"name": "child"})
    tip = git("rev-parse", "main", cwd=work).strip()
    assert git("ls-remote", at(other, fork), "refs/heads/main").split()[0] == tip
    other.result("PUT", "/namespaces/team/repos/child/file", {"any": "thing"}, path="a.txt")
    assert len(one.result("GET", "/namespaces/team/repos/child/log")) == 3
    assert other.result("DELETE", "/namespaces/team/repos/shared")["id"] == made["id"]
    assert one.api("GET", "/namespaces/team/repos/shared").status_code == 404
    assert "1 repositories checked, 0 problems" in one.command("fsck")
    assert one.stop() == 0
    assert [server["id"] for server in rows(other, "SELECT id FROM servers")] != []
    assert len(rows(other, "SELECT id FROM servers")) == 1


def rows(server: Server, sql: str, **params: Any) -> list[dict[str, Any]]:
    database = server.installation.open()
    try:
        return database.read(lambda tx: tx.rows(sql, params))
    finally:
        database.close()


def change(server: Server, sql: str, **params: Any) -> int:
    database = server.installation.open()
    try:
        return database.write(lambda tx: tx.run(sql, params))
    finally:
        database.close()


def test_a_schema_of_a_newer_version_beside(two: list[Server], git: Git, work: Path) -> None:
    """As in an upgrade: the next version's tables are made, then server by server is replaced."""
    one, other = two
    before = one.create("before")
    newer = "INSERT INTO migrations (area, name) VALUES ('artifacts-metadata', 'm999_newer')"
    added = [
        f"ALTER TABLE {table} ADD COLUMN newer TEXT"
        for table in ("namespaces", "repos", "tokens", "servers", "sessions", "events", "usage")
    ]
    for statement in (*added, "CREATE TABLE newer (id TEXT PRIMARY KEY)", newer):
        change(other, statement)
    git("push", "-q", at(one, before), "main", cwd=work)
    made = other.create("after")
    assert one.stop() == 0
    one.start()
    git("push", "-q", at(one, made), "main", cwd=work)
    fork = one.result("POST", "/namespaces/team/repos/after/fork", {"name": "child"})
    assert git("ls-remote", at(other, fork), "main") == git("ls-remote", at(other, before), "main")
    assert other.result("DELETE", "/namespaces/team/repos/before")["id"] == before["id"]
    assert "2 repositories checked, 0 problems" in one.command("fsck")


def test_the_work_of_a_killed_server_is_taken_over(two: list[Server], git: Git, work: Path) -> None:
    one, other = two
    made = one.create("parent")
    git("push", "-q", at(one, made), "main", cwd=work)
    (gone,) = rows(one, "SELECT id FROM servers ORDER BY started_at LIMIT 1")
    one.kill()
    # As if it had been killed in the middle of a fork, and of making a repository.
    change(
        other,
        "INSERT INTO repos (id, namespace, name, default_branch, read_only, status, source, job,"
        " created_at, updated_at, owner) SELECT 'half000000000000', namespace, 'half',"
        " default_branch, 0, 'forking', 'artifacts:team/parent', :job, 1, 1, :owner FROM repos",
        owner=gone["id"],
        job=json.dumps({"parent": made["id"], "default_branch_only": False}),
    )
    orphan = other.data / "repos" / "or" / "orphan0000000000.git"
    orphan.mkdir(parents=True)
    for mark in ("half000000000000", "orphan0000000000"):
        (other.data / "open" / gone["id"] / mark).touch()
    until(
        lambda: other.api("GET", "/namespaces/team/repos/half").status_code == 200,
        "the fork",
    )
    until(
        lambda: not (other.data / "open" / gone["id"]).exists(),
        "the folder of the server that is gone to go",
    )
    assert not orphan.exists()
    assert len(rows(other, "SELECT id FROM servers")) == 1
    assert "2 repositories checked, 0 problems" in other.command("fsck")


def taken_over_meanwhile(server: Server, what: str, ask: Callable[[], T]) -> T:
    """What comes of `ask`. Others take over as soon as git's question whether it may waits."""
    assert server.database is not None
    with psycopg.connect(server.database) as taking_over, ThreadPoolExecutor(1) as pool:
        # As others do that take over. Until it is committed, who asks for the row has to wait.
        taking_over.execute("DELETE FROM servers")
        asked = pool.submit(ask)
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted"
        until(lambda: asked.done() or taking_over.execute(waits).fetchone(), what)
        taking_over.commit()
        return asked.result(timeout=90)


def errors_of(server: Server, name: str) -> list[str]:
    """The kinds of errors that were recorded for a repository."""
    found = "SELECT type FROM events WHERE repository = :name AND kind = 'error'"
    return [row["type"] for row in rows(server, found, name=name)]


def test_git_does_not_move_a_ref_for_a_server_that_lost_its_place(
    two: list[Server], git: Git, work: Path
) -> None:
    one, other = two
    made = one.create("fenced")
    push = partial(git, "push", "-q", at(one, made), "main", cwd=work, fails=True)
    taken_over_meanwhile(one, "a push that waits", push)
    assert git("ls-remote", at(other, made)) == ""
    until(lambda: errors_of(other, "fenced"), "its event")
    assert errors_of(other, "fenced") == ["serverError"]
    until(
        lambda: one.api("GET", "/healthz/ready").status_code and _ready(one) and _ready(other),
        "both",
    )
    until(lambda: _pushed(git, at(one, made), work), "a push")
    assert "0 problems" in one.command("fsck")


def test_a_push_under_way_ends_when_the_server_notices_that_it_lost_its_place(
    two: list[Server],
) -> None:
    one, other = two
    made = one.create("noticed")
    with ThreadPoolExecutor(1) as pool:
        push = pool.submit(
            ask, one, git_head("noticed", "receive-pack"), made["token"], PUSH + b"0000PACK"
        )
        marks = one.data / "open"
        until(lambda: list(marks.glob(f"*/{made['id']}")), "the beginning of the push")
        change(other, "DELETE FROM servers")
        head, _, body = push.result(timeout=90).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 5" in head.lower()
    assert body == b"The database is away\n"
    until(lambda: errors_of(other, "noticed"), "its event")
    assert errors_of(other, "noticed") == ["serverError"]


ASKED: dict[str, tuple[str, str, dict[str, str] | None, dict[str, str]]] = {
    "file": ("PUT", "/file", {"any": "thing"}, {"path": "a.txt"}),
    "ref": ("DELETE", "/refs/refs/heads/topic", None, {}),
    "merge": ("POST", "/merge", {"head": "topic"}, {}),
}


@pytest.mark.parametrize("what", ASKED)
def test_rest_says_that_the_database_is_away_where_git_does_not_move_a_ref(
    two: list[Server], git: Git, work: Path, what: str
) -> None:
    one, other = two
    made = one.create("fenced")
    git("push", "-q", at(one, made), "main", cwd=work)
    git("commit", "-q", "--allow-empty", "-m", "Topic", cwd=work)
    git("push", "-q", at(one, made), "HEAD:refs/heads/topic", cwd=work)
    before = git("ls-remote", at(other, made))
    method, path, body, params = ASKED[what]
    path = f"/namespaces/team/repos/fenced{path}"
    ask = partial(one.api, method, path, body, **params)
    answer = taken_over_meanwhile(one, "git's question", ask)
    said = (answer.status_code, answer.json()["errors"][0]["message"])
    assert said == (503, "The database is away")
    assert answer.headers["retry-after"]
    # git's question, or the server itself, whichever came first.
    assert "another server has taken over" in one.errors()
    assert git("ls-remote", at(other, made)) == before


def _ready(server: Server) -> bool:
    with server.client() as client:
        return client.get("/healthz/ready").status_code == 200


def _pushed(git: Git, remote: str, work: Path) -> bool:
    try:
        git("push", "-q", remote, "main", cwd=work)
    except AssertionError:
        return False
    return True


def test_a_push_in_whose_middle_the_connection_breaks_is_not_taken(
    two: list[Server], git: Git, work: Path, postgres: PostgresServer
) -> None:
    one, other = two
    made = one.create("broken")
    (work / "large").write_bytes(os.urandom(3_000_000))
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Large", cwd=work)
    push = subprocess.Popen(
        ["git", "-c", "http.postBuffer=65536", "push", "-q", at(one, made), "main"],
        cwd=work,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(
        lambda: list((one.data / "open").glob(f"*/{made['id']}")),
        "the beginning of the push",
    )
    assert one.database is not None
    name = one.database.partition("@/")[2].partition("?")[0]
    with postgres.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
    _, said = push.communicate(timeout=120)
    taken = git("ls-remote", at(other, made))
    # Whichever came first: what the client was told is what there is.
    assert (push.returncode == 0) is bool(taken), said
    until(lambda: _ready(one) and _ready(other), "both")
    until(lambda: _pushed(git, at(one, made), work), "a push")
    assert "0 problems" in one.command("fsck")


@contextmanager
def breaking(server: Server, event: str, table: str) -> Iterator[None]:
    """Whoever does that to a row there loses the connection; not the one that says that the server
    is there, so nobody takes its work over."""
    change(
        server,
        "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN OLD; END $$",
    )
    made = f"CREATE TRIGGER broken BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION broken()"
    change(server, made)
    yield
    change(server, f"DROP TRIGGER broken ON {table}")


def test_a_fork_in_whose_middle_a_connection_breaks_goes_on(
    two: list[Server], git: Git, work: Path
) -> None:
    one, other = two
    git("push", "-q", at(one, one.create("parent")), "main", cwd=work)
    with breaking(other, "INSERT", "repo_pools"):
        fork = one.result("POST", "/namespaces/team/repos/parent/fork", {"name": "child"})
        assert other.api("GET", "/namespaces/team/repos/child").status_code == 409
        until(lambda: "the work on team/child goes on later" in one.errors(), "it")
    child = "/namespaces/team/repos/child"
    until(lambda: other.api("GET", child).status_code == 200, "the fork")
    assert "refs/heads/main" in git("ls-remote", at(other, fork))
    assert "2 repositories checked, 0 problems" in one.command("fsck")


def test_a_fork_that_fails_while_a_connection_breaks_is_given_up_later(
    two: list[Server], git: Git, work: Path
) -> None:
    one, other = two
    made = one.create("parent")
    git("push", "-q", at(one, made), "main", cwd=work)
    (objects,) = one.data.glob(f"repos/*/{made['id']}.git/objects")
    objects.rename(objects.with_name("moved"))
    objects.touch()
    child = "/namespaces/team/repos/child"
    with breaking(other, "DELETE", "repos"):
        one.result("POST", "/namespaces/team/repos/parent/fork", {"name": "child"})
        until(lambda: "the work on team/child goes on later" in one.errors(), "it")
        assert other.api("GET", child).status_code == 409
    until(lambda: other.api("GET", child).status_code == 404, "its end")
    assert _ready(one)
    objects.unlink()
    objects.with_name("moved").rename(objects)
    one.result("POST", "/namespaces/team/repos/parent/fork", {"name": "child"})
    one.wait_ready("child")
    assert "2 repositories checked, 0 problems" in one.command("fsck")


def test_limits_count_over_all(tmp_path: Path, postgres: PostgresServer) -> None:
    servers = pair(tmp_path, postgres.new_database(), "--max-requests", "12")
    try:
        # Of what comes within ten seconds of the clock twelve pass, by whichever server: where
        # each has got more than twelve for each such window, both have refused some.
        began = time.time() // 10
        codes: list[list[int]] = [[], []]
        with servers[0].client() as one, servers[1].client() as other:
            while len(codes[0]) <= 12 * (windows := time.time() // 10 - began + 1):
                for client, seen in zip((one, other), codes, strict=True):
                    seen.append(client.get(f"{servers[0].base}/namespaces").status_code)
        windows = time.time() // 10 - began + 1
        assert set(codes[0]) <= {200, 429} >= set(codes[1])
        assert codes[0].count(200) + codes[1].count(200) <= 12 * windows
        assert 429 in codes[0] and 429 in codes[1]
    finally:
        for server in servers:
            server.kill()


def test_postgresql_stops_and_starts(
    tmp_path: Path, own_postgres: PostgresServer, git: Git, work: Path
) -> None:
    (server,) = pair(tmp_path, own_postgres.new_database(), count=1)
    try:
        made = server.create("survivor")
        git("push", "-q", at(server, made), "main", cwd=work)
        own_postgres.stop()
        answer = server.api("GET", "/namespaces")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["errors"][0]["message"] == "The database is away"
        assert not _ready(server)
        with server.client() as client:
            assert client.get("/healthz/live").status_code == 200
        assert "503" in git("ls-remote", at(server, made), fails=True)
        own_postgres.start()
        until(lambda: _ready(server), "the server")
        assert "refs/heads/main" in git("ls-remote", at(server, made))
        server.create("another")
        assert "2 repositories checked, 0 problems" in server.command("fsck")
    finally:
        server.kill()


def test_ready_is_only_who_has_its_connection(tmp_path: Path, postgres: PostgresServer) -> None:
    (server,) = pair(tmp_path, postgres.new_database(), count=1)
    connections = (
        "FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    try:
        for _ in range(3):
            assert rows(server, f"SELECT pg_terminate_backend(pid) {connections}")
            time.sleep(0.2)  # longer than what was seen before counts
            until(lambda: _ready(server), "the server")
            assert rows(server, f"SELECT pid {connections}")
    finally:
        server.kill()


def test_draining(tmp_path: Path, postgres: PostgresServer) -> None:
    (server,) = pair(tmp_path, postgres.new_database(), "--drain-time", "8", count=1)
    process = server.process
    assert process is not None
    process.terminate()
    until(lambda: not _ready(server), "draining")
    assert server.api("GET", "/namespaces").status_code == 200
    assert process.wait(timeout=60) == 0
    with pytest.raises(httpx.ConnectError):
        server.api("GET", "/namespaces")
    server.process = None


def test_connections_break_while_everything_happens(
    two: list[Server], git: Git, work: Path, postgres: PostgresServer
) -> None:
    """Pushes, forks, deletions and gc: what was acknowledged is there, and everything is whole."""
    made = two[0].create("parent")
    git("push", "-q", at(two[0], made), "main", cwd=work)
    database = str(two[0].database).partition("@/")[2].partition("?")[0]
    over = threading.Event()

    def break_connections() -> None:
        with postgres.connect() as connection:
            while not over.wait(0.7):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    (database,),
                )

    breaker = threading.Thread(target=break_connections)
    breaker.start()
    forked, deleted, tips, answers = set(), set(), set(), []
    try:
        for number in range(16):
            server = two[number % 2]
            answer = server.api(
                "POST", "/namespaces/team/repos/parent/fork", {"name": f"fork-{number:02}"}
            )
            answers.append(answer.status_code)
            if answer.is_success:
                forked.add(f"fork-{number:02}")
            if number % 3 == 2 and forked - deleted:
                victim = min(forked - deleted)
                answer = two[0].api("DELETE", f"/namespaces/team/repos/{victim}")
                answers.append(answer.status_code)
                if answer.is_success:
                    deleted.add(victim)
                else:
                    forked.discard(victim)  # either may be
            (work / "n").write_text(f"{number}\n")
            git("add", "-A", cwd=work)
            git("commit", "-q", "-m", f"{number}", cwd=work)
            if _pushed(git, at(server, made), work):
                tips.add(git("rev-parse", "HEAD", cwd=work).strip())
            if number == 8:
                gc = [*SERVER, "gc", "--data", str(server.data), "--grace", "0"]
                subprocess.run(gc, env=server.environment, capture_output=True, check=False)
    finally:
        over.set()
        breaker.join()
    assert set(answers) <= {200, 201, 202, 404, 409, 503}, answers
    until(lambda: all(_ready(server) for server in two), "all")
    unfinished = "SELECT name FROM repos WHERE status <> 'ready'"
    until(lambda: not rows(two[0], unfinished), "the end of what was begun")
    listed = two[1].result("GET", "/namespaces/team/repos", limit=200)
    names = {repo["name"] for repo in listed}
    assert forked - deleted <= names and not names & deleted
    there = git("ls-remote", at(two[1], made), "refs/heads/main").split()[0]
    history = git("log", "--format=%H", there, cwd=work)
    assert all(tip in history for tip in tips)
    until(lambda: _pushed(git, at(two[0], made), work), "a push")
    assert "0 problems" in two[0].command("fsck")
