"""Results and errors of the client. Times are aware datetimes in UTC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, overload

from artifactfs.errors import ArtifactFSError
from artifactfs.redact import redact

Json = Mapping[str, Any]
Scope = Literal["read", "write"]
Sort = Literal["created_at", "updated_at", "last_push_at", "name"]
Direction = Literal["asc", "desc"]
Jurisdiction = Literal["eu", "us"]

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
    10203: "MERGE_CONFLICT",
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


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path that does not merge, and why, in git's words: ``contents``, ``modify/delete`` …"""

    path: str
    kind: str

    @classmethod
    def of(cls, data: Json) -> Conflict:
        return cls(data["path"], data["kind"])


class ArtifactsError(ArtifactFSError):
    """The server refused, or could not be reached.

    `code` is a name such as ``ALREADY_EXISTS`` (``UNAVAILABLE`` without an answer), `numeric_code`
    its number (0 where the server gave none), `status` the HTTP status (0 without an answer).
    `conflicts`: what does not merge, where `code` is ``MERGE_CONFLICT``.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        numeric_code: int,
        status: int,
        conflicts: tuple[Conflict, ...] = (),
    ) -> None:
        super().__init__(redact(message))
        self.code = code
        self.numeric_code = numeric_code
        self.status = status
        self.conflicts = conflicts

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
            conflicts=tuple(Conflict.of(each) for each in _conflicts(first)),
        )


def _conflicts(error: Any) -> Sequence[Json]:
    found = error.get("conflicts") if isinstance(error, dict) else None
    return found if isinstance(found, list) else []


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
    namespace: str = ""

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
            namespace=data.get("namespace", ""),
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
class TokenList(Sequence[TokenInfo]):
    """Tokens of a repository: a sequence. `total` counts those on the server in that state."""

    tokens: tuple[TokenInfo, ...]
    total: int

    @overload
    def __getitem__(self, index: int) -> TokenInfo: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenInfo, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenInfo | tuple[TokenInfo, ...]:
        return self.tokens[index]

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[TokenInfo]:
        return iter(self.tokens)

    @classmethod
    def of(cls, envelope: Json) -> TokenList:
        info = envelope.get("result_info") or {}
        tokens = tuple(TokenInfo.of(each) for each in envelope["result"])
        return cls(tokens, info.get("total_count") or len(tokens))


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace of the account. `jurisdiction` is ``unrestricted``, ``eu`` or ``us``."""

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
class NamespacePage:
    """One page of namespaces. `cursor` leads to the next, None at the end."""

    namespaces: tuple[Namespace, ...]
    cursor: str | None

    @classmethod
    def of(cls, envelope: Json) -> NamespacePage:
        info = envelope.get("result_info") or {}
        namespaces = tuple(Namespace.of(each) for each in envelope["result"])
        return cls(namespaces, info.get("cursor") or None)


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """An entry of a tree. `mode` as git writes it, ``100644``."""

    name: str
    mode: str
    hash: str
    type: Literal["blob", "tree", "exec", "symlink", "gitlink"]

    @classmethod
    def of(cls, data: Json) -> TreeEntry:
        return cls(data["name"], data["mode"], data["hash"], data["type"])


@dataclass(frozen=True, slots=True)
class Usage:
    """What an account, or a namespace, used in a time: operations, and storage in GB-months."""

    operations: int
    storage_gb_months: float

    @classmethod
    def of(cls, data: Json) -> Usage:
        return cls(data["operations"], data["storage_gb_months"])


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Usage from the day `since` to the day `until`, both included."""

    since: date
    until: date
    account: Usage
    namespaces: Mapping[str, Usage]

    @classmethod
    def of(cls, data: Json) -> UsageReport:
        return cls(
            date.fromisoformat(data["since"]),
            date.fromisoformat(data["until"]),
            Usage.of(data["account"]),
            {each["namespace"]: Usage.of(each) for each in data["namespaces"]},
        )


@dataclass(frozen=True, slots=True)
class Webhook:
    """A subscription. `namespace` None: of the whole account. `events` by their full names.

    `secret`, the key of the signatures, is there only in the answer to its creation.
    """

    id: str
    url: str
    namespace: str | None
    events: tuple[str, ...]
    created_at: datetime
    secret: str | None = None

    def __repr__(self) -> str:
        return f"Webhook(id={self.id!r}, url={self.url!r}, namespace={self.namespace!r})"

    @classmethod
    def of(cls, data: Json) -> Webhook:
        return cls(
            data["id"],
            data["url"],
            data["namespace"],
            tuple(data["events"]),
            _time(data["created_at"]),
            data.get("secret"),
        )


MergeMethod = Literal["merge", "fast-forward", "squash"]
ArchiveFormat = Literal["tar.gz", "tar", "zip"]


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What became of a merge: the branch was at `before` and is at `hash`.

    `outcome`: ``merged``, ``fast-forwarded``, ``squashed`` or ``up-to-date``.
    """

    outcome: str
    before: str
    hash: str

    @classmethod
    def of(cls, data: Json) -> MergeResult:
        return cls(data["outcome"], data["before"], data["hash"])


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """A ref that moved. `before`, `after`: hex oids, zeros for absent."""

    ref: str
    before: str
    after: str

    @classmethod
    def of(cls, data: Json) -> RefUpdate:
        return cls(data["ref"], data["before"], data["after"])


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync moved, and the refs that it left alone: they have commits of their own."""

    updated: tuple[RefUpdate, ...]
    diverged: tuple[str, ...]

    @classmethod
    def of(cls, data: Json) -> SyncResult:
        return cls(tuple(RefUpdate.of(each) for each in data["updated"]), tuple(data["diverged"]))


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


@dataclass(frozen=True, slots=True)
class Comparison:
    """How `head` lies to `base`, and what a merge would do.

    `status`: ``identical``, ``ahead``, ``behind``, ``diverged`` or ``unrelated``. `commits`: what
    head has and base lacks, newest first.
    """

    status: str
    base: str
    head: str
    merge_base: str | None
    ahead: int
    behind: int
    mergeable: bool
    conflicts: tuple[Conflict, ...]
    commits: tuple[Commit, ...]

    @classmethod
    def of(cls, data: Json) -> Comparison:
        return cls(
            status=data["status"],
            base=data["base"],
            head=data["head"],
            merge_base=data["merge_base"],
            ahead=data["ahead"],
            behind=data["behind"],
            mergeable=data["mergeable"],
            conflicts=tuple(Conflict.of(each) for each in data["conflicts"]),
            commits=tuple(Commit.of(each) for each in data["commits"]),
        )
