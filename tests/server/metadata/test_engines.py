"""One database for several servers: tables made, rows moved, wrong ones refused."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from artifactfs.server.metadata.catalog import add_api_token, ensure_namespace, insert
from artifactfs.server.metadata.database import Database, DatabaseError
from artifactfs.server.metadata.migrations import event_migrations, metadata_migrations
from artifactfs.server.metadata.postgres import Postgres
from artifactfs.server.metadata.sqlite import SQLite
from tests.server.postgres import PostgresServer
from tests.server.running import SERVER, Git, Server, with_token


def artifacts(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SERVER, *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_transaction_is_whole_or_absent(database: Database) -> None:
    def fails(tx: object) -> None:
        database_tx = tx
        ensure_namespace(database_tx, "team", "acc")  # type: ignore[arg-type]
        raise KeyError

    with pytest.raises(KeyError):
        database.write(fails)
    assert database.read(lambda tx: tx.rows("SELECT * FROM namespaces")) == []
    database.write(lambda tx: ensure_namespace(tx, "team", "acc"))
    with pytest.raises(DatabaseError):
        database.write(lambda tx: insert(tx, "repos", id="x"))
    assert len(database.read(lambda tx: tx.rows("SELECT * FROM namespaces"))) == 1


def test_names_are_compared_without_case(database: Database) -> None:
    database.write(lambda tx: ensure_namespace(tx, "Team", "acc"))
    assert not database.write(lambda tx: ensure_namespace(tx, "tEAM", "acc"))
    found = database.read(
        lambda tx: tx.rows("SELECT name FROM namespaces WHERE name > :after", {"after": "TEAL"})
    )
    assert found == [{"name": "Team"}]


def test_columns_of_a_newer_version_disturb_nobody(database: Database) -> None:
    """Servers of the version before go on while the next one has made its tables."""
    for table in ("namespaces", "repos", "tokens", "api_tokens", "deliveries", "events"):
        database.write(lambda tx, table=table: tx.run(f"ALTER TABLE {table} ADD COLUMN newer TEXT"))
    database.write(lambda tx: ensure_namespace(tx, "team", "acc"))
    made, _ = database.write(lambda tx: add_api_token(tx, "acc", "", "edit"))
    assert database.read(lambda tx: tx.row("SELECT id FROM api_tokens")) == {"id": made.id}


def test_a_file_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """Its steps were recorded in another table."""
    path = tmp_path / "metadata.db"
    SQLite(path, metadata_migrations).close()
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE _sqlite_migrations (migration_set TEXT, name TEXT)")
        old.execute(
            "INSERT INTO _sqlite_migrations SELECT area, name FROM migrations WHERE name < 'm005'"
        )
        old.execute("DROP TABLE migrations")
        for table in ("servers", "sessions", "request_windows"):
            old.execute(f"DROP TABLE {table}")
        old.execute("DROP INDEX repos_unfinished")
        for table in ("repos", "deliveries"):
            old.execute(f"ALTER TABLE {table} DROP COLUMN owner")
    old.close()
    for _ in range(2):
        again = SQLite(path, metadata_migrations)
        assert again.read(metadata_migrations.missing) == []
        again.close()


def test_moving_to_postgresql(
    tmp_path: Path, git: Git, work: Path, postgres: PostgresServer
) -> None:
    server = Server(tmp_path, []).start()
    made = server.create("kept", description="with 'quotes' and ü")
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    server.result("POST", "/namespaces/team/repos/kept/fork", {"name": "child"})
    url = postgres.new_database()
    refused = artifacts("move", "--data", server.data, "--to", url)
    assert refused.returncode == 1 and "another server" in refused.stderr
    assert server.stop() == 0
    operations = server.command("usage")
    server.command("move", "--to", url)
    plain = artifacts("serve", "--data", server.data, "--listen", "127.0.0.1:0")
    assert plain.returncode == 1 and "belongs to a PostgreSQL database" in plain.stderr
    server.database = url
    assert server.command("usage") == operations
    server.start()
    try:
        assert server.result("GET", "/namespaces/team/repos/kept")["description"].endswith("ü")
        assert "refs/heads/main" in git("ls-remote", remote)
        assert "2 repositories checked, 0 problems" in server.command("fsck")
        again = artifacts("move", "--data", server.data, "--to", url)
        assert again.returncode == 2 and "not in the folder" in again.stderr
        place = tmp_path / "backup"
        server.command("backup", str(place))
    finally:
        server.kill()
    restored = Server(tmp_path / "restored", [], api_token=server.api_token)
    restored.root.mkdir()
    restored.database = postgres.new_database()
    restored.command("restore", str(place))
    restored.start()
    try:
        assert len(restored.result("GET", "/namespaces/team/repos")) == 2
        assert "2 repositories checked, 0 problems" in restored.command("fsck")
    finally:
        restored.kill()


def test_what_is_refused(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database()

    def refused(*words: object, **environment: str) -> str:
        done = artifacts(*words, "--data", tmp_path / "data", **environment)
        assert done.returncode != 0
        return done.stderr

    listen = ("--listen", "127.0.0.1:0")
    assert "has not the tables" in refused("serve", *listen, "--database", url)
    secret = "postgresql://me:secret@127.0.0.1:1/x"
    shown = refused("migrate", "--database", secret)
    assert "can be seen by everybody" in shown
    away = refused("migrate", ARTIFACTS_DATABASE=secret)
    assert "cannot be used" in away and "secret" not in away
    file = tmp_path / "url"
    assert "cannot be read" in refused("migrate", "--database", f"@{file}")
    file.write_text(secret + "\n")
    assert "cannot be used" in refused("migrate", "--database", f"@{file}")
    assert "not a URL" in refused("migrate", "--database", "mysql://x/y")
    assert "name the database" in refused("migrate")


def test_folder_and_database_belong_together(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database()
    done = artifacts("migrate", "--data", tmp_path / "one", "--database", url)
    assert done.returncode == 0 and "is up to date" in done.stdout
    for folder, other in (("two", url), ("one", postgres.new_database())):
        done = artifacts("migrate", "--data", tmp_path / folder, "--database", other)
        assert done.returncode == 1 and "do not belong together" in done.stderr
    db = Postgres(make_url(url), metadata_migrations, event_migrations)
    assert db.read(lambda tx: tx.rows("SELECT id FROM repos")) == []
    db.close()
