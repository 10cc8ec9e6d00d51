"""Rows of the metadata database as typed values. Times are milliseconds since the epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from artifactfs.server.metadata.database import Row

Scope = Literal["read", "write"]
Permission = Literal["read", "edit"]
Status = Literal["ready", "importing", "forking"]
TokenState = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token for the control plane of one account, or (`namespaces`) a part of it."""

    id: str
    account_id: str
    name: str
    permission: Permission
    created_at: int
    revoked_at: int | None
    namespaces: tuple[str, ...] | None = None

    def may_use(self, namespace: str) -> bool:
        """Names are compared without case, as the database does."""
        return self.namespaces is None or namespace.lower() in self.namespaces

    @classmethod
    def of(cls, row: Row) -> ApiToken:
        return cls(
            row["id"],
            row["account_id"],
            row["name"],
            row["permission"],
            row["created_at"],
            row["revoked_at"],
            None if row["namespaces"] is None else tuple(json.loads(row["namespaces"])),
        )


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    account_id: str
    jurisdiction: str
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, row: Row) -> Namespace:
        return cls(
            row["name"],
            row["account_id"],
            row["jurisdiction"],
            row["created_at"],
            row["updated_at"],
        )


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository. `job`: what the background still has to do while it is not ready.

    `anonymous_read`: git may fetch from it without a token. `import_branch`: the one branch that
    an import is of, None where it is of all.
    """

    id: str
    namespace: str
    account_id: str
    name: str
    description: str | None
    default_branch: str
    read_only: bool
    anonymous_read: bool
    status: Status
    source: str | None
    job: dict[str, Any] | None
    created_at: int
    updated_at: int
    last_push_at: int | None
    own_bytes: int
    import_branch: str | None = None

    @classmethod
    def of(cls, row: Row) -> Repo:
        return cls(
            row["id"],
            row["namespace"],
            row["account_id"],
            row["name"],
            row["description"],
            row["default_branch"],
            bool(row["read_only"]),
            bool(row["anonymous_read"]),
            row["status"],
            row["source"],
            None if row["job"] is None else json.loads(row["job"]),
            row["created_at"],
            row["updated_at"],
            row["last_push_at"],
            row["own_bytes"],
            row["import_branch"],
        )

    @property
    def full_name(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class RepoToken:
    """A token for one repository."""

    id: str
    repo_id: str
    scope: Scope
    created_at: int
    expires_at: int
    revoked_at: int | None

    @classmethod
    def of(cls, row: Row) -> RepoToken:
        return cls(
            row["id"],
            row["repo_id"],
            row["scope"],
            row["created_at"],
            row["expires_at"],
            row["revoked_at"],
        )

    def state(self, now: int) -> TokenState:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at <= now else "active"
