"""Bodies of requests and answers, as pydantic models: they validate, and they are the OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

T = TypeVar("T")


class Source(BaseModel):
    pointer: str = Field(description="JSON pointer of the field at fault")


class ConflictItem(BaseModel):
    path: str
    kind: str = Field(description="in git's words: contents, modify/delete, add/add …")


class ErrorItem(BaseModel):
    code: int
    message: str
    documentation_url: str | None = None
    source: Source | None = None
    conflicts: list[ConflictItem] | None = Field(None, description="what does not merge")


class ResultInfo(BaseModel):
    """How a list goes on. Cursor and page count both work, whichever a client knows."""

    cursor: str | None = Field(None, description="pass it as `cursor` for what follows")
    page: int | None = None
    per_page: int
    count: int
    total_count: int | None = None
    total_pages: int | None = None


class Envelope(BaseModel, Generic[T]):
    result: T
    success: Literal[True] = True
    errors: list[ErrorItem] = []
    messages: list[Any] = []
    result_info: ResultInfo | None = None


class ErrorEnvelope(BaseModel):
    result: None = None
    success: Literal[False] = False
    errors: list[ErrorItem]
    messages: list[Any] = []


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore")


BranchName = Annotated[str, StringConstraints(max_length=200)]
Flag = Annotated[bool, Field(strict=True)]
"""true or false, and nothing that only means it."""
Description = Annotated[str, StringConstraints(max_length=1_000)]


_NO_CONTROL = r"^[^:\x00-\x1f\x7f]*$"


class CreateNamespace(_Request):
    namespace: str
    jurisdiction: Literal["eu", "us"] | None = None


class NamespaceInfo(BaseModel):
    namespace: str
    jurisdiction: Literal["unrestricted", "eu", "us"]
    repo_count: int
    created_at: str
    updated_at: str


class CreateRepo(_Request):
    name: str
    description: Description | None = None
    default_branch: BranchName = "main"
    read_only: Flag = False
    anonymous_read: Flag = Field(False, description="git may fetch without a token")


class UpdateRepo(_Request):
    """What is not given stays as it is."""

    description: Description | None = None
    default_branch: BranchName | None = None
    read_only: Flag | None = None
    anonymous_read: Flag | None = None


class ForkRepo(_Request):
    name: str
    description: Description | None = None
    namespace: str | None = Field(None, description="where to; default: beside the ancestor")
    read_only: Flag = False
    anonymous_read: Flag = False
    default_branch_only: Flag = False


class _WithCredentials(_Request):
    username: Annotated[str, StringConstraints(max_length=500, pattern=_NO_CONTROL)] | None = Field(
        None, description="for the source; with a token for password, any will do"
    )
    password: SecretStr | None = Field(
        None, description="for the source: used for this request, stored nowhere", max_length=5_000
    )


class SyncRepo(_WithCredentials):
    force: Flag = Field(False, description="move refs that have other commits here, too")
    prune: Flag = Field(False, description="delete refs here that the source lacks")


class SyncedRef(BaseModel):
    ref: str
    before: str
    after: str


class SyncResult(BaseModel):
    updated: list[SyncedRef] = Field(description="zeros: absent")
    diverged: list[str] = Field(description="left alone: they have commits that the source lacks")


class ImportRepo(_WithCredentials):
    url: Annotated[str, StringConstraints(max_length=2_000)]
    branch: BranchName | None = None
    depth: Annotated[int, Field(ge=1, le=2_147_483_647, strict=True)] | None = None
    description: Description | None = None
    read_only: Flag = False
    anonymous_read: Flag = False


class CreatedRepo(BaseModel):
    id: str
    name: str
    description: str | None
    default_branch: str
    remote: str
    token: str = Field(description="a write token; shown once")


class ForkedRepo(CreatedRepo):
    objects: int = Field(description="objects shared with the ancestor")


class RepoInfo(BaseModel):
    id: str
    namespace: str
    name: str
    description: str | None
    default_branch: str
    created_at: str
    updated_at: str
    last_push_at: str | None
    source: str | None
    read_only: bool
    anonymous_read: bool
    remote: str
    status: Literal["creating", "ready", "importing", "forking"]


class Deleted(BaseModel):
    id: str


class CreateToken(_Request):
    repo: str
    scope: Literal["read", "write"] = "write"
    ttl: Annotated[int, Field(strict=True)] = 86_400


class CreatedToken(BaseModel):
    id: str
    plaintext: str = Field(description="the token; shown once")
    scope: Literal["read", "write"]
    expires_at: str


class TokenInfo(BaseModel):
    id: str
    scope: Literal["read", "write"]
    state: Literal["active", "expired", "revoked"]
    created_at: str
    expires_at: str
