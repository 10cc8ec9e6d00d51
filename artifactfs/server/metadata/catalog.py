"""Accounts, namespaces, repositories and tokens as the metadata database knows them.

Functions that take a `Transaction` are single steps of a transaction; a caller composes them inside
`Store.write`. The `Catalog` answers the questions every request asks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import Store, Transaction, insertion
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
    """Reads. Each method is a point query. Raises: DatabaseError."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def api_token(self, secret: str) -> ApiToken | None:
        """The token with that secret, revoked ones included; None if there is none."""
        wanted = tokens.digest(secret)
        rows = await self.store.rows(
            "SELECT * FROM api_tokens WHERE prefix = :prefix",
            {"prefix": tokens.digest_prefix(wanted)},
        )
        for row in rows:
            if tokens.same_digest(row["digest"], wanted):
                return ApiToken.of(row)
        return None

    async def api_token_by_id(self, token_id: str) -> ApiToken | None:
        row = await self.store.row("SELECT * FROM api_tokens WHERE id = :id", {"id": token_id})
        return None if row is None else ApiToken.of(row)

    async def has_api_tokens(self) -> bool:
        return await self.store.row("SELECT 1 AS one FROM api_tokens LIMIT 1") is not None

    async def repo_token(self, presented: str) -> RepoToken | None:
        """The repository token a client presented, expired and revoked ones included."""
        secret = tokens.repo_secret(presented)
        if secret is None:
            return None
        wanted = tokens.digest(secret)
        rows = await self.store.rows(
            "SELECT * FROM tokens WHERE prefix = :prefix", {"prefix": tokens.digest_prefix(wanted)}
        )
        for row in rows:
            if tokens.same_digest(row["digest"], wanted):
                return RepoToken.of(row)
        return None

    async def token_by_id(self, token_id: str, namespace: str) -> RepoToken | None:
        row = await self.store.row(
            "SELECT * FROM tokens WHERE id = :id AND namespace = :namespace",
            {"id": token_id, "namespace": namespace},
        )
        return None if row is None else RepoToken.of(row)

    async def namespace(self, name: str, account_id: str) -> Namespace | None:
        row = await self.store.row(
            "SELECT * FROM namespaces WHERE name = :name AND account_id = :account",
            {"name": name, "account": account_id},
        )
        return None if row is None else Namespace.of(row)

    async def repo(self, namespace: str, name: str) -> Repo | None:
        row = await self.store.row(
            _REPO + "WHERE repos.namespace = :namespace AND repos.name = :name",
            {"namespace": namespace, "name": name},
        )
        return None if row is None else Repo.of(row)

    async def repo_by_id(self, repo_id: str) -> Repo | None:
        row = await self.store.row(_REPO + "WHERE repos.id = :id", {"id": repo_id})
        return None if row is None else Repo.of(row)

    async def deleted_repo_id(self, namespace: str, name: str) -> str | None:
        """The id of the repository of that name that was deleted last."""
        row = await self.store.row(
            "SELECT id FROM deleted_repos WHERE namespace = :namespace AND name = :name "
            "ORDER BY deleted_at DESC LIMIT 1",
            {"namespace": namespace, "name": name},
        )
        return None if row is None else str(row["id"])

    async def unfinished(self, owner: str | None) -> list[Repo]:
        """Repositories whose fork or import has not ended; of one server, or all."""
        sql = _REPO + "WHERE repos.status <> 'ready'"
        if owner is not None:
            sql += " AND repos.owner = :owner"
        rows = await self.store.rows(sql, {"owner": owner})
        return [Repo.of(row) for row in rows]

    async def pool_ids(self, repo_id: str) -> list[str]:
        """The pools a repository borrows from, oldest first."""
        rows = await self.store.rows(
            "SELECT pool_id FROM repo_pools JOIN pools ON pools.id = pool_id "
            "WHERE repo_id = :repo ORDER BY pools.created_at, pools.id",
            {"repo": repo_id},
        )
        return [str(row["pool_id"]) for row in rows]

    async def pool_bytes(self, repo_id: str) -> int:
        row = await self.store.row(
            "SELECT coalesce(sum(bytes), 0) AS total FROM pools WHERE id IN "
            "(SELECT pool_id FROM repo_pools WHERE repo_id = :repo)",
            {"repo": repo_id},
        )
        return 0 if row is None else int(row["total"])

    async def account_bytes(self, account_id: str) -> int:
        """Bytes on disk of an account: each pool counts once, however many forks share it."""
        row = await self.store.row(
            "SELECT (SELECT coalesce(sum(own_bytes), 0) FROM repos JOIN namespaces "
            " ON namespaces.name = repos.namespace WHERE account_id = :account)"
            " + (SELECT coalesce(sum(bytes), 0) FROM pools WHERE account_id = :account) AS total",
            {"account": account_id},
        )
        return 0 if row is None else int(row["total"])


def setting(tx: Transaction, key: str) -> str | None:
    row = tx.row("SELECT value FROM settings WHERE key = :key", {"key": key})
    return None if row is None else str(row["value"])


def set_setting(tx: Transaction, key: str, value: str) -> None:
    tx.run(
        "INSERT INTO settings (key, value) VALUES (:key, :value)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        {"key": key, "value": value},
    )


def add_api_token(
    tx: Transaction,
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
    insert(
        tx,
        "api_tokens",
        id=token.id,
        account_id=account_id,
        name=name,
        permission=permission,
        prefix=tokens.digest_prefix(secret.digest),
        digest=secret.digest,
        created_at=token.created_at,
        namespaces=None if only is None else json.dumps(only),
    )
    return token, secret.plaintext


def insert(tx: Transaction, table: str, **columns: Any) -> None:
    """Add a row. The names are ours, never a client's."""
    tx.run(insertion(table, columns), columns)


def ensure_namespace(
    tx: Transaction, name: str, account_id: str, *, jurisdiction: str = "unrestricted"
) -> bool:
    """Make a namespace if it is not there; True if it was made.

    Raises: Problem (ALREADY_EXISTS) if another account has it.
    """
    row = tx.row("SELECT account_id FROM namespaces WHERE name = :name", {"name": name})
    if row is not None:
        if row["account_id"] != account_id:
            raise Problem(Code.ALREADY_EXISTS, "The namespace is taken by another account")
        return False
    now = now_ms()
    insert(
        tx,
        "namespaces",
        name=name,
        account_id=account_id,
        jurisdiction=jurisdiction,
        created_at=now,
        updated_at=now,
    )
    return True


def add_repo(tx: Transaction, repo: Repo, *, owner: str | None = None) -> None:
    """Insert a repository. `owner`: the server that does its job.

    Raises: Problem (ALREADY_EXISTS).
    """
    taken = tx.row(
        "SELECT 1 AS one FROM repos WHERE namespace = :namespace AND name = :name",
        {"namespace": repo.namespace, "name": repo.name},
    )
    if taken is not None:
        raise Problem(
            Code.ALREADY_EXISTS, f"Repository {repo.name!r} already exists", pointer="/name"
        )
    insert(
        tx,
        "repos",
        id=repo.id,
        namespace=repo.namespace,
        name=repo.name,
        description=repo.description,
        default_branch=repo.default_branch,
        read_only=int(repo.read_only),
        anonymous_read=int(repo.anonymous_read),
        status=repo.status,
        source=repo.source,
        job=None if repo.job is None else json.dumps(repo.job),
        created_at=repo.created_at,
        updated_at=repo.updated_at,
        last_push_at=repo.last_push_at,
        own_bytes=repo.own_bytes,
        import_branch=repo.import_branch,
        owner=owner,
    )


def update_repo(tx: Transaction, repo_id: str, **columns: Any) -> None:
    """Set columns of a repository; `updated_at` moves unless it is given."""
    columns.setdefault("updated_at", now_ms())
    # SQLite takes a bool for what it is stored as, PostgreSQL does not.
    values = {name: int(v) if isinstance(v, bool) else v for name, v in columns.items()}
    assignments = ", ".join(f"{column} = :{column}" for column in values)
    tx.run(f"UPDATE repos SET {assignments} WHERE id = :repo", {**values, "repo": repo_id})


def remove_repo(tx: Transaction, repo: Repo, *, tombstone: bool) -> bool:
    """Take a repository, its tokens and its claims on pools out of the database; False if it was
    not there any more."""
    if not tx.run("DELETE FROM repos WHERE id = :id", {"id": repo.id}):
        return False
    tx.run("DELETE FROM tokens WHERE repo_id = :id", {"id": repo.id})
    tx.run("DELETE FROM repo_pools WHERE repo_id = :id", {"id": repo.id})
    if tombstone:
        insert(
            tx,
            "deleted_repos",
            id=repo.id,
            namespace=repo.namespace,
            name=repo.name,
            deleted_at=now_ms(),
        )
    return True


def add_pool(tx: Transaction, pool_id: str, account_id: str, size: int, objects: int) -> None:
    """Insert a pool. `size` in bytes."""
    insert(
        tx,
        "pools",
        id=pool_id,
        account_id=account_id,
        created_at=now_ms(),
        bytes=size,
        objects=objects,
    )


def claim_pool(tx: Transaction, repo_id: str, pool_id: str) -> None:
    """A repository borrows from a pool; once more is fine."""
    tx.run(
        "INSERT INTO repo_pools (repo_id, pool_id) VALUES (:repo, :pool) ON CONFLICT DO NOTHING",
        {"repo": repo_id, "pool": pool_id},
    )


def add_repo_token(
    tx: Transaction, repo_id: str, namespace: str, scope: Scope, ttl_s: int
) -> tuple[RepoToken, str]:
    """Make a token for a repository; returns it and its plaintext, which is stored nowhere."""
    now = now_ms()
    expires_s = now // 1000 + ttl_s
    secret = tokens.new_repo_token(expires_s)
    token = RepoToken(tokens.new_id(), repo_id, scope, now, expires_s * 1000, None)
    insert(
        tx,
        "tokens",
        id=token.id,
        repo_id=repo_id,
        namespace=namespace,
        scope=scope,
        prefix=tokens.digest_prefix(secret.digest),
        digest=secret.digest,
        created_at=now,
        expires_at=token.expires_at,
    )
    return token, secret.plaintext
