"""All rows from one database into another: moving to PostgreSQL, and its backup."""

from __future__ import annotations

from artifactfs.server.metadata.database import Transaction, insertion

METADATA_TABLES = (
    *("settings", "api_tokens", "namespaces", "repos", "deleted_repos", "tokens"),
    *("pools", "repo_pools", "webhooks", "deliveries"),
)
"""In an order in which what is referred to comes first."""
EVENT_TABLES = ("events", "usage")
_AT_ONCE = 2_000
_ELSEWHERE = ("owner",)
"""Columns that only mean something to the servers of the database that they are in."""


def copy_rows(source: Transaction, target: Transaction, tables: tuple[str, ...]) -> int:
    """Copy tables; how many rows. The tables of `target` are empty. Raises: DatabaseError."""
    copied = 0
    for table in tables:
        for rows in source.batches(f"SELECT * FROM {table}", _AT_ONCE):
            columns = [name for name in rows[0] if name not in _ELSEWHERE]
            target.run(insertion(table, columns), rows)
            copied += len(rows)
    return copied
