"""The tables of both databases, and how they come to be: steps that are applied once, in order.

One text for both engines: ``{integer}``, ``{name}`` … are what differs. A step only adds (a table,
a column that may be left out, an index), so that servers of the version before still work with it
while they are replaced one after another. What is no longer used goes one version later. For the
same reason a statement names the columns that it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from artifactfs.server.metadata.database import Engines, Transaction

_WORDS: Mapping[Engines, Mapping[str, str]] = {
    "sqlite": {
        "integer": "INTEGER",
        "real": "REAL",
        "name": "TEXT COLLATE NOCASE",
        "rowless": "WITHOUT ROWID",
        "fleeting": "",
    },
    "postgresql": {
        "integer": "BIGINT",
        "real": "DOUBLE PRECISION",
        "name": 'CITEXT COLLATE "C"',
        "rowless": "",
        "fleeting": "UNLOGGED",
    },
}
_FIRST: Mapping[Engines, tuple[str, ...]] = {
    "sqlite": (),
    "postgresql": ("CREATE EXTENSION IF NOT EXISTS citext",),
}
_RECORD = """
    CREATE TABLE IF NOT EXISTS migrations (area TEXT NOT NULL, name TEXT NOT NULL,
        PRIMARY KEY (area, name))
"""
_EXISTS: Mapping[Engines, str] = {
    "sqlite": "SELECT 1 AS one FROM sqlite_master WHERE type = 'table' AND name = :name",
    "postgresql": "SELECT 1 AS one FROM pg_tables WHERE tablename = :name"
    " AND schemaname = current_schema()",
}


@dataclass(frozen=True, slots=True)
class Migrations:
    """The steps of one area, oldest first: (name, statements)."""

    area: str
    steps: tuple[tuple[str, str], ...]

    def missing(self, tx: Transaction) -> list[str]:
        """The steps that this version knows and the database has not seen."""
        done = self._done(tx)
        return [name for name, _ in self.steps if name not in done]

    def apply(self, tx: Transaction) -> list[str]:
        """Bring the schema up to date; the names of the steps that were taken."""
        for statement in (*_FIRST[tx.engine], _RECORD):
            tx.run(statement)
        done = self._done(tx)
        taken = []
        for name, statements in self.steps:
            if name not in done:
                for statement in statements.split(";"):
                    if statement.strip():
                        tx.run(statement.format_map(_WORDS[tx.engine]))
                taken.append(name)
            if name not in done or done[name] == "old":
                tx.run(
                    "INSERT INTO migrations (area, name) VALUES (:area, :name)",
                    {"area": self.area, "name": name},
                )
        return taken

    def _done(self, tx: Transaction) -> dict[str, str]:
        done: dict[str, str] = {}
        if tx.engine == "sqlite" and _has(tx, "_sqlite_migrations"):  # of versions before 0.2
            rows = tx.rows(
                "SELECT name FROM _sqlite_migrations WHERE migration_set = :area",
                {"area": self.area},
            )
            done = {row["name"]: "old" for row in rows}
        if _has(tx, "migrations"):
            rows = tx.rows("SELECT name FROM migrations WHERE area = :area", {"area": self.area})
            done |= {row["name"]: "now" for row in rows}
        return done


def _has(tx: Transaction, table: str) -> bool:
    return tx.row(_EXISTS[tx.engine], {"name": table}) is not None


metadata_migrations = Migrations(
    "artifacts-metadata",
    (
        (
            "m001_first_tables",
            """
            CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) {rowless};
            CREATE TABLE api_tokens (
                id TEXT PRIMARY KEY, account_id TEXT NOT NULL, name TEXT NOT NULL,
                permission TEXT NOT NULL CHECK (permission IN ('read', 'edit')),
                prefix TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
                created_at {integer} NOT NULL, revoked_at {integer});
            CREATE INDEX api_tokens_prefix ON api_tokens (prefix);
            CREATE TABLE namespaces (
                name {name} PRIMARY KEY,
                account_id TEXT NOT NULL, jurisdiction TEXT NOT NULL,
                created_at {integer} NOT NULL, updated_at {integer} NOT NULL);
            CREATE INDEX namespaces_account ON namespaces (account_id, name);
            CREATE TABLE repos (
                id TEXT PRIMARY KEY,
                namespace {name} NOT NULL REFERENCES namespaces (name),
                name {name} NOT NULL, description TEXT,
                default_branch TEXT NOT NULL, read_only {integer} NOT NULL,
                status TEXT NOT NULL CHECK (status IN ('ready', 'importing', 'forking')),
                source TEXT, job TEXT,
                created_at {integer} NOT NULL, updated_at {integer} NOT NULL,
                last_push_at {integer},
                own_bytes {integer} NOT NULL DEFAULT 0,
                UNIQUE (namespace, name));
            CREATE INDEX repos_created ON repos (namespace, created_at, id);
            CREATE TABLE deleted_repos (
                id TEXT PRIMARY KEY, namespace {name} NOT NULL, name {name} NOT NULL,
                deleted_at {integer} NOT NULL);
            CREATE INDEX deleted_repos_name ON deleted_repos (namespace, name);
            CREATE TABLE tokens (
                id TEXT PRIMARY KEY, repo_id TEXT NOT NULL,
                namespace {name} NOT NULL,
                scope TEXT NOT NULL CHECK (scope IN ('read', 'write')),
                prefix TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
                created_at {integer} NOT NULL, expires_at {integer} NOT NULL,
                revoked_at {integer});
            CREATE INDEX tokens_prefix ON tokens (prefix);
            CREATE INDEX tokens_repo ON tokens (repo_id, created_at);
            CREATE TABLE pools (
                id TEXT PRIMARY KEY, account_id TEXT NOT NULL, created_at {integer} NOT NULL,
                bytes {integer} NOT NULL, objects {integer} NOT NULL);
            CREATE TABLE repo_pools (
                repo_id TEXT NOT NULL, pool_id TEXT NOT NULL REFERENCES pools (id),
                PRIMARY KEY (repo_id, pool_id)) {rowless};
            CREATE INDEX repo_pools_pool ON repo_pools (pool_id);
            CREATE TABLE webhooks (
                id TEXT PRIMARY KEY, account_id TEXT NOT NULL, namespace TEXT, url TEXT NOT NULL,
                secret TEXT NOT NULL, events TEXT NOT NULL, created_at {integer} NOT NULL);
            CREATE TABLE deliveries (
                id TEXT PRIMARY KEY,
                webhook_id TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
                body TEXT NOT NULL, attempts {integer} NOT NULL, next_at {integer} NOT NULL,
                last_error TEXT);
            CREATE INDEX deliveries_next ON deliveries (next_at)
            """,
        ),
        (
            "m002_anonymous_read",
            "ALTER TABLE repos ADD COLUMN anonymous_read {integer} NOT NULL DEFAULT 0",
        ),
        # A JSON list of names; NULL: all of the account.
        ("m003_token_namespaces", "ALTER TABLE api_tokens ADD COLUMN namespaces TEXT"),
        # The one branch that an import is of; NULL: all.
        ("m004_import_branch", "ALTER TABLE repos ADD COLUMN import_branch TEXT"),
        # Who serves these data, who does which work, who is logged in, and who asked how often.
        (
            "m005_servers",
            """
            CREATE TABLE servers (
                id TEXT PRIMARY KEY, host TEXT NOT NULL, process TEXT NOT NULL,
                version TEXT NOT NULL, started_at {integer} NOT NULL);
            ALTER TABLE repos ADD COLUMN owner TEXT;
            ALTER TABLE deliveries ADD COLUMN owner TEXT;
            CREATE TABLE sessions (
                digest TEXT PRIMARY KEY, token_id TEXT NOT NULL, form_key TEXT NOT NULL,
                expires_at {integer} NOT NULL);
            CREATE {fleeting} TABLE request_windows (
                key TEXT NOT NULL, start_at {integer} NOT NULL, requests {integer} NOT NULL,
                PRIMARY KEY (key, start_at)) {rowless}
            """,
        ),
        (
            "m006_unfinished",
            "CREATE INDEX repos_unfinished ON repos (owner) WHERE status <> 'ready'",
        ),
    ),
)

event_migrations = Migrations(
    "artifacts-events",
    (
        (
            "m001_events_and_usage",
            """
            CREATE TABLE events (
                at {integer} NOT NULL, account_id TEXT NOT NULL,
                namespace TEXT NOT NULL, repository TEXT NOT NULL, kind TEXT NOT NULL,
                type TEXT NOT NULL, error_message TEXT NOT NULL, duration_ms {real} NOT NULL);
            CREATE INDEX events_account_at ON events (account_id, at);
            CREATE INDEX events_at ON events (at);
            CREATE TABLE usage (
                day TEXT NOT NULL, account_id TEXT NOT NULL, namespace TEXT NOT NULL,
                operations {integer} NOT NULL DEFAULT 0, peak_bytes {integer} NOT NULL DEFAULT 0,
                PRIMARY KEY (day, account_id, namespace)) {rowless}
            """,
        ),
    ),
)
