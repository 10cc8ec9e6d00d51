"""Accounts, namespaces, repositories and tokens as the metadata database knows them.

Functions that take a `Database` are single steps of a transaction; a caller composes them inside
`Store.write`. The `Catalog` answers the questions every request asks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import Store
from artifactfs.server.metadata.records import (
    ApiToken,
    Namespace,
    Permission,
    Repo,
    RepoToken,
    Scope,
)
from artifactfs.server.problems import Code, Problem

_REPO = """
    SELECT repos.*, namespaces.account_id FROM repos
    JOIN namespaces ON namespaces.name = repos.namespace
"""


class Catalog:
    """Reads. Each method is a point query and does not block."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def api_token(self, secret: str) -> ApiToken | None:
        """The token with that secret, revoked ones included; None if there is none."""
        wanted = tokens.digest(secret)
        rows = self.store.rows(
            "SELECT * FROM api_tokens WHERE prefix = ?", (tokens.digest_prefix(wanted),)
        )
        for row in rows:
            if tokens.same_digest(row["digest"], wanted):
                return ApiToken.of(row)
        return None

    def api_token_by_id(self, token_id: str) -> ApiToken | None:
        row = self.store.row("SELECT * FROM api_tokens WHERE id = ?", (token_id,))
        return None if row is None else ApiToken.of(row)

    def has_api_tokens(self) -> bool:
        return self.store.row("SELECT 1 AS one FROM api_tokens LIMIT 1") is not None

    def repo_token(self, presented: str) -> RepoToken | None:
        """The repository token a client presented, expired and revoked ones included."""
        secret = tokens.repo_secret(presented)
        if secret is None:
            return None
        wanted = tokens.digest(secret)
        rows = self.store.rows(
            "SELECT * FROM tokens WHERE prefix = ?", (tokens.digest_prefix(wanted),)
        )
        for row in rows:
            if tokens.same_digest(row["digest"], wanted):
                return RepoToken.of(row)
        return None

    def token_by_id(self, token_id: str, namespace: str) -> RepoToken | None:
        row = self.store.row(
            "SELECT * FROM tokens WHERE id = ? AND namespace = ?", (token_id, namespace)
        )
        return None if row is None else RepoToken.of(row)

    def namespace(self, name: str, account_id: str) -> Namespace | None:
        row = self.store.row(
            "SELECT * FROM namespaces WHERE name = ? AND account_id = ?", (name, account_id)
        )
        return None if row is None else Namespace.of(row)

    def repo(self, namespace: str, name: str) -> Repo | None:
        row = self.store.row(
            _REPO + "WHERE repos.namespace = ? AND repos.name = ?", (namespace, name)
        )
        return None if row is None else Repo.of(row)

    def repo_by_id(self, repo_id: str) -> Repo | None:
        row = self.store.row(_REPO + "WHERE repos.id = ?", (repo_id,))
        return None if row is None else Repo.of(row)

    def deleted_repo_id(self, namespace: str, name: str) -> str | None:
        """The id of the repository of that name that was deleted last."""
        row = self.store.row(
            "SELECT id FROM deleted_repos WHERE namespace = ? AND name = ? "
            "ORDER BY deleted_at DESC LIMIT 1",
            (namespace, name),
        )
        return None if row is None else str(row["id"])

    def unfinished(self) -> list[Repo]:
        """Repositories whose fork or import has not ended."""
        return [Repo.of(row) for row in self.store.rows(_REPO + "WHERE repos.status <> 'ready'")]

    def pool_ids(self, repo_id: str) -> list[str]:
        """The pools a repository borrows from, oldest first."""
        rows = self.store.rows(
            "SELECT pool_id FROM repo_pools JOIN pools ON pools.id = pool_id "
            "WHERE repo_id = ? ORDER BY pools.created_at, pools.id",
            (repo_id,),
        )
        return [str(row["pool_id"]) for row in rows]

    def pool_bytes(self, repo_id: str) -> int:
        row = self.store.row(
            "SELECT coalesce(sum(bytes), 0) AS total FROM pools WHERE id IN "
            "(SELECT pool_id FROM repo_pools WHERE repo_id = ?)",
            (repo_id,),
        )
        return 0 if row is None else int(row["total"])

    def account_bytes(self, account_id: str) -> int:
        """Bytes on disk of an account: each pool counts once, however many forks share it."""
        row = self.store.row(
            "SELECT (SELECT coalesce(sum(own_bytes), 0) FROM repos JOIN namespaces "
            " ON namespaces.name = repos.namespace WHERE account_id = ?)"
            " + (SELECT coalesce(sum(bytes), 0) FROM pools WHERE account_id = ?) AS total",
            (account_id, account_id),
        )
        return 0 if row is None else int(row["total"])


def setting(db: Database, key: str) -> str | None:
    row = next(iter(db.query("SELECT value FROM settings WHERE key = ?", (key,))), None)
    return None if row is None else str(row["value"])


def set_setting(db: Database, key: str, value: str) -> None:
    db.conn.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", (key, value))


def add_api_token(
    db: Database,
    account_id: str,
    name: str,
    permission: Permission,
    namespaces: Sequence[str] | None = None,
) -> tuple[ApiToken, str]:
    """Make an API token; returns it and its plaintext, which is stored nowhere.

    `namespaces`: the only ones that it is for.
    """
    secret = tokens.new_api_token()
    only = None if namespaces is None else tuple(sorted({each.lower() for each in namespaces}))
    token = ApiToken(tokens.new_id(), account_id, name, permission, now_ms(), None, only)
    db.conn.execute(
        "INSERT INTO api_tokens (id, account_id, name, permission, prefix, digest, created_at,"
        " namespaces) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            token.id,
            account_id,
            name,
            permission,
            tokens.digest_prefix(secret.digest),
            secret.digest,
            token.created_at,
            None if only is None else json.dumps(only),
        ),
    )
    return token, secret.plaintext


def ensure_namespace(
    db: Database, name: str, account_id: str, *, jurisdiction: str = "unrestricted"
) -> bool:
    """Make a namespace if it is not there; True if it was made.

    Raises: Problem (ALREADY_EXISTS) if another account has it.
    """
    row = next(iter(db.query("SELECT account_id FROM namespaces WHERE name = ?", (name,))), None)
    if row is not None:
        if row["account_id"] != account_id:
            raise Problem(Code.ALREADY_EXISTS, "The namespace is taken by another account")
        return False
    now = now_ms()
    db.conn.execute(
        "INSERT INTO namespaces VALUES (?, ?, ?, ?, ?)", (name, account_id, jurisdiction, now, now)
    )
    return True


def add_repo(
    db: Database,
    repo: Repo,
) -> None:
    """Insert a repository. Raises: Problem (ALREADY_EXISTS)."""
    taken = next(
        iter(
            db.query(
                "SELECT 1 FROM repos WHERE namespace = ? AND name = ?", (repo.namespace, repo.name)
            )
        ),
        None,
    )
    if taken is not None:
        raise Problem(
            Code.ALREADY_EXISTS, f"Repository {repo.name!r} already exists", pointer="/name"
        )
    db.conn.execute(
        "INSERT INTO repos (id, namespace, name, description, default_branch, read_only,"
        " anonymous_read, status, source, job, created_at, updated_at, last_push_at, own_bytes,"
        " import_branch) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            repo.id,
            repo.namespace,
            repo.name,
            repo.description,
            repo.default_branch,
            int(repo.read_only),
            int(repo.anonymous_read),
            repo.status,
            repo.source,
            None if repo.job is None else json.dumps(repo.job),
            repo.created_at,
            repo.updated_at,
            repo.last_push_at,
            repo.own_bytes,
            repo.import_branch,
        ),
    )


def update_repo(db: Database, repo_id: str, **columns: Any) -> None:
    """Set columns of a repository; `updated_at` moves unless it is given."""
    columns.setdefault("updated_at", now_ms())
    assignments = ", ".join(f"{column} = ?" for column in columns)
    db.conn.execute(f"UPDATE repos SET {assignments} WHERE id = ?", (*columns.values(), repo_id))


def remove_repo(db: Database, repo: Repo, *, tombstone: bool) -> None:
    """Take a repository, its tokens and its claims on pools out of the database."""
    db.conn.execute("DELETE FROM repos WHERE id = ?", (repo.id,))
    db.conn.execute("DELETE FROM tokens WHERE repo_id = ?", (repo.id,))
    db.conn.execute("DELETE FROM repo_pools WHERE repo_id = ?", (repo.id,))
    if tombstone:
        db.conn.execute(
            "INSERT INTO deleted_repos VALUES (?, ?, ?, ?)",
            (repo.id, repo.namespace, repo.name, now_ms()),
        )


def add_repo_token(
    db: Database, repo_id: str, namespace: str, scope: Scope, ttl_s: int
) -> tuple[RepoToken, str]:
    """Make a token for a repository; returns it and its plaintext, which is stored nowhere."""
    now = now_ms()
    expires_s = now // 1000 + ttl_s
    secret = tokens.new_repo_token(expires_s)
    token = RepoToken(tokens.new_id(), repo_id, scope, now, expires_s * 1000, None)
    db.conn.execute(
        "INSERT INTO tokens (id, repo_id, namespace, scope, prefix, digest, created_at,"
        " expires_at, revoked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            token.id,
            repo_id,
            namespace,
            scope,
            tokens.digest_prefix(secret.digest),
            secret.digest,
            now,
            token.expires_at,
        ),
    )
    return token, secret.plaintext
