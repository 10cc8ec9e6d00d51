"""Results and errors of the client. Times are aware datetimes in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from artifactfs.errors import ArtifactFSError
from artifactfs.redact import redact

Json = Mapping[str, Any]
Scope = Literal["read", "write"]

_CODES = {
    10000: "AUTHENTICATION",
    10100: "INVALID_INPUT",
    10101: "INVALID_REPO_NAME",
    10103: "INVALID_TTL",
    10104: "INVALID_URL",
    10106: "REMOTE_AUTH_REQUIRED",
    10200: "NOT_FOUND",
    10201: "ALREADY_EXISTS",
    10202: "CONFLICT",
    10302: "IMPORT_IN_PROGRESS",
    10303: "FORK_IN_PROGRESS",
    10400: "INTERNAL_ERROR",
    10401: "UPSTREAM_UNAVAILABLE",
    10402: "MEMORY_LIMIT",
    10403: "STORAGE_LIMIT",
    10405: "METHOD_NOT_ALLOWED",
    10408: "TOO_SLOW",
    10429: "RATE_LIMITED",
    10503: "BUSY",
}


class ArtifactsError(ArtifactFSError):
    """The server refused, or could not be reached.

    `code` is a name such as ``ALREADY_EXISTS`` (``UNAVAILABLE`` without an answer), `numeric_code`
    its number (0 where the server gave none), `status` the HTTP status (0 without an answer).
    """

    def __init__(self, message: str, *, code: str, numeric_code: int, status: int) -> None:
        super().__init__(redact(message))
        self.code = code
        self.numeric_code = numeric_code
        self.status = status

    @classmethod
    def from_answer(cls, status: int, body: Any) -> ArtifactsError:
        """From the envelope of an error, or whatever came instead of one."""
        errors = body.get("errors") if isinstance(body, dict) else None
        first = errors[0] if isinstance(errors, list) and errors else {}
        number = first.get("code", 0) if isinstance(first, dict) else 0
        message = first.get("message") if isinstance(first, dict) else None
        return cls(
            str(message or f"the server answered {status}"),
            code=_CODES.get(number, "UNKNOWN"),
            numeric_code=int(number),
            status=status,
        )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _time_or_none(text: str | None) -> datetime | None:
    return None if text is None else _time(text)


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """A repository. `status` is ``ready`` unless a fork or import still goes on."""

    id: str
    name: str
    description: str | None
    default_branch: str
    created_at: datetime
    updated_at: datetime
    last_push_at: datetime | None
    source: str | None
    read_only: bool
    anonymous_read: bool
    remote: str
    status: str

    @classmethod
    def of(cls, data: Json) -> RepoInfo:
        return cls(
            id=data["id"],
            name=data["name"],
            description=data["description"],
            default_branch=data["default_branch"],
            created_at=_time(data["created_at"]),
            updated_at=_time(data["updated_at"]),
            last_push_at=_time_or_none(data["last_push_at"]),
            source=data["source"],
            read_only=data["read_only"],
            anonymous_read=data.get("anonymous_read", False),
            remote=data.get("remote", ""),
            status=data.get("status", "ready"),
        )


@dataclass(frozen=True, slots=True)
class CreatedRepo:
    """A repository that was just created, forked or imported, with its first write token.

    `token` is shown this once. `objects`: how many a fork shares with its ancestor, else None.
    """

    id: str
    name: str
    description: str | None
    default_branch: str
    remote: str
    token: str
    objects: int | None = None

    def __repr__(self) -> str:
        return f"CreatedRepo(name={self.name!r}, remote={self.remote!r}, token=***)"

    @classmethod
    def of(cls, data: Json) -> CreatedRepo:
        return cls(
            id=data["id"],
            name=data["name"],
            description=data["description"],
            default_branch=data["default_branch"],
            remote=data["remote"],
            token=data["token"],
            objects=data.get("objects"),
        )


@dataclass(frozen=True, slots=True)
class RepoPage:
    """One page of repositories. `cursor` leads to the next, None at the end."""

    repos: tuple[RepoInfo, ...]
    total: int
    cursor: str | None

    @classmethod
    def of(cls, envelope: Json) -> RepoPage:
        info = envelope.get("result_info") or {}
        repos = tuple(RepoInfo.of(each) for each in envelope["result"])
        return cls(repos, info.get("total_count") or len(repos), info.get("cursor") or None)


@dataclass(frozen=True, slots=True)
class CreatedToken:
    """A token that was just made; `plaintext` is shown this once. Treat it as opaque."""

    id: str
    plaintext: str
    scope: Scope
    expires_at: datetime

    def __repr__(self) -> str:
        return f"CreatedToken(id={self.id!r}, scope={self.scope!r}, plaintext=***)"

    @classmethod
    def of(cls, data: Json) -> CreatedToken:
        return cls(data["id"], data["plaintext"], data["scope"], _time(data["expires_at"]))


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as lists show it: without its secret."""

    id: str
    scope: Scope
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime

    @classmethod
    def of(cls, data: Json) -> TokenInfo:
        return cls(
            data["id"],
            data["scope"],
            data["state"],
            _time(data["created_at"]),
            _time(data["expires_at"]),
        )


@dataclass(frozen=True, slots=True)
class Namespace:
    namespace: str
    jurisdiction: str
    repo_count: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, data: Json) -> Namespace:
        return cls(
            data["namespace"],
            data["jurisdiction"],
            data["repo_count"],
            _time(data["created_at"]),
            _time(data["updated_at"]),
        )


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref by its full name, and the oid that it points to."""

    name: str
    hash: str

    @classmethod
    def of(cls, data: Json) -> Ref:
        return cls(data["name"], data["hash"])


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, as ``/log`` shows it."""

    hash: str
    tree: str
    message: str
    author: str
    author_email: str
    parents: tuple[str, ...]
    authored_at: datetime
    committed_at: datetime

    @classmethod
    def of(cls, data: Json) -> Commit:
        return cls(
            hash=data["hash"],
            tree=data["treeHash"],
            message=data["message"],
            author=data["author"]["name"],
            author_email=data["author"]["email"],
            parents=tuple(data["parents"]),
            authored_at=_time(data["authoredAt"]),
            committed_at=_time(data["committedAt"]),
        )
