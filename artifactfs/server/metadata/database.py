"""The metadata database: schema, migrations, one writer.

SQLite in WAL mode. Reads are indexed point queries on a connection of their own and are made
right in the event loop (tens of microseconds); each write is one transaction in a worker thread,
synced to disk before it returns, so what a client was told survives a crash.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
from sqlite_utils import Database, Migrations

from artifactfs.errors import StateError

T = TypeVar("T")
Row = dict[str, Any]
Params = tuple[Any, ...] | dict[str, Any]

metadata_migrations = Migrations("artifacts-metadata")


@metadata_migrations()
def m001_first_tables(db: Database) -> None:
    db.executescript(
        """
        CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE api_tokens (
            id TEXT PRIMARY KEY, account_id TEXT NOT NULL, name TEXT NOT NULL,
            permission TEXT NOT NULL CHECK (permission IN ('read', 'edit')),
            prefix TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, revoked_at INTEGER);
        CREATE INDEX api_tokens_prefix ON api_tokens (prefix);
        CREATE TABLE namespaces (
            name TEXT PRIMARY KEY COLLATE NOCASE,
            account_id TEXT NOT NULL, jurisdiction TEXT NOT NULL,
            created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
        CREATE INDEX namespaces_account ON namespaces (account_id, name);
        CREATE TABLE repos (
            id TEXT PRIMARY KEY,
            namespace TEXT NOT NULL COLLATE NOCASE REFERENCES namespaces (name),
            name TEXT NOT NULL COLLATE NOCASE, description TEXT,
            default_branch TEXT NOT NULL, read_only INTEGER NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('ready', 'importing', 'forking')),
            source TEXT, job TEXT,
            created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, last_push_at INTEGER,
            own_bytes INTEGER NOT NULL DEFAULT 0,
            UNIQUE (namespace, name));
        CREATE INDEX repos_created ON repos (namespace, created_at, id);
        CREATE TABLE deleted_repos (
            id TEXT PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE,
            name TEXT NOT NULL COLLATE NOCASE,
            deleted_at INTEGER NOT NULL);
        CREATE INDEX deleted_repos_name ON deleted_repos (namespace, name);
        CREATE TABLE tokens (
            id TEXT PRIMARY KEY, repo_id TEXT NOT NULL,
            namespace TEXT NOT NULL COLLATE NOCASE,
            scope TEXT NOT NULL CHECK (scope IN ('read', 'write')),
            prefix TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
            created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, revoked_at INTEGER);
        CREATE INDEX tokens_prefix ON tokens (prefix);
        CREATE INDEX tokens_repo ON tokens (repo_id, created_at);
        CREATE TABLE pools (
            id TEXT PRIMARY KEY, account_id TEXT NOT NULL, created_at INTEGER NOT NULL,
            bytes INTEGER NOT NULL, objects INTEGER NOT NULL);
        CREATE TABLE repo_pools (
            repo_id TEXT NOT NULL, pool_id TEXT NOT NULL REFERENCES pools (id),
            PRIMARY KEY (repo_id, pool_id)) WITHOUT ROWID;
        CREATE INDEX repo_pools_pool ON repo_pools (pool_id);
        CREATE TABLE webhooks (
            id TEXT PRIMARY KEY, account_id TEXT NOT NULL, namespace TEXT, url TEXT NOT NULL,
            secret TEXT NOT NULL, events TEXT NOT NULL, created_at INTEGER NOT NULL);
        CREATE TABLE deliveries (
            id TEXT PRIMARY KEY,
            webhook_id TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
            body TEXT NOT NULL, attempts INTEGER NOT NULL, next_at INTEGER NOT NULL,
            last_error TEXT);
        CREATE INDEX deliveries_next ON deliveries (next_at);
        """
    )


@metadata_migrations()
def m002_anonymous_read(db: Database) -> None:
    db.conn.execute("ALTER TABLE repos ADD COLUMN anonymous_read INTEGER NOT NULL DEFAULT 0")


@metadata_migrations()
def m003_token_namespaces(db: Database) -> None:
    """A JSON list of names; NULL: all of the account."""
    db.conn.execute("ALTER TABLE api_tokens ADD COLUMN namespaces TEXT")


@metadata_migrations()
def m004_import_branch(db: Database) -> None:
    """The one branch that an import is of; NULL: all."""
    db.conn.execute("ALTER TABLE repos ADD COLUMN import_branch TEXT")


def open_database(path: Path, migrations: Migrations, *, durable: bool = True) -> Database:
    """Open (or create, mode 0600) a database and bring its schema up to date.

    `durable`: sync the log at each commit. Raises: StateError.
    """
    new = not path.exists()
    if new:
        path.touch(mode=0o600)
    try:
        connection = sqlite3.connect(path, timeout=10, check_same_thread=False)
        db = Database(connection)
        db.conn.execute("PRAGMA journal_mode=WAL")
        db.conn.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        db.conn.execute("PRAGMA foreign_keys=ON")
        migrations.apply(db)
    except sqlite3.DatabaseError as error:
        raise StateError(f"{path} cannot be opened: {error}") from error
    return db


class Store:
    """One database file: a connection to read in the event loop, one to write in a thread."""

    def __init__(self, path: Path, migrations: Migrations, *, durable: bool = True) -> None:
        self._writer = open_database(path, migrations, durable=durable)
        self._reader = open_database(path, migrations, durable=durable)
        self._one_writer = trio.CapacityLimiter(1)

    def rows(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows of a query as dicts."""
        return list(self._reader.query(sql, params))

    def row(self, sql: str, params: Params = ()) -> Row | None:
        """The first row of a query, None without one."""
        return next(iter(self._reader.query(sql, params)), None)

    async def write(self, change: Callable[[Database], T]) -> T:
        """Run `change` as one transaction in a thread; it is on disk when this returns.

        Not cancellable once it began: the transaction is then either whole or, on an exception
        of `change`, absent.
        """

        def run() -> T:
            return write_now(self._writer, change)

        return await trio.to_thread.run_sync(run, limiter=self._one_writer)

    async def read_in_thread(self, query: Callable[[Database], T]) -> T:
        """Run a query that may take long without holding up the event loop."""

        def run() -> T:
            return query(self._writer)

        return await trio.to_thread.run_sync(run, limiter=self._one_writer)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def write_now(db: Database, change: Callable[[Database], T]) -> T:
    """Run `change` as one immediate transaction, here and now (for commands)."""
    db.conn.execute("BEGIN IMMEDIATE")
    try:
        result = change(db)
        db.conn.execute("COMMIT")
    except BaseException:
        if db.conn.in_transaction:  # on a full disk SQLite may have rolled back by itself
            db.conn.execute("ROLLBACK")
        raise
    return result
