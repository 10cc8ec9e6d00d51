"""Every call of the interface as data: what to send, and how to read the answer.

The synchronous and the asynchronous client differ only in how they carry these out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from artifactfs.client.models import (
    ArtifactsError,
    Commit,
    CreatedRepo,
    CreatedToken,
    Namespace,
    Ref,
    RepoInfo,
    RepoPage,
    Scope,
    TokenInfo,
)
from artifactfs.redact import redact

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 60.0

_UNTOUCHED = frozenset({429, 503})
"""The server did nothing: any request may be sent again."""
_BROKEN = frozenset({500, 502, 504})
"""Something may have happened: only requests that can be repeated are."""
_BASE_S, _LONGEST_S = 0.2, 20.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request below the account's base path. `read` gets the decoded answer."""

    method: str
    path: str
    read: Callable[[Any], T]
    json: Mapping[str, Any] | None = None
    content: bytes | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False

    def answer(self, response: httpx.Response) -> T:
        """Read a response that was received whole. Raises: ArtifactsError."""
        if response.is_success and self.raw:
            return self.read(response.content)
        try:
            body = response.json() if response.content else {}
        except ValueError:
            body = {}
        if not response.is_success:
            raise ArtifactsError.from_answer(response.status_code, body)
        return self.read(body)


def wait_before_retry(
    method: str, response: httpx.Response | None, attempt: int, retries: int
) -> float | None:
    """Seconds to wait before sending a request again; None if it should not be.

    `response` is None if no connection could be made. `attempt` counts from 0.
    """
    if attempt >= retries:
        return None
    backoff = min(_LONGEST_S, _BASE_S * (1 << attempt)) * random.uniform(0.75, 1.25)
    if response is None:
        return backoff
    repeatable = method in ("GET", "DELETE") and response.status_code in _BROKEN
    if response.status_code not in _UNTOUCHED and not repeatable:
        return None
    told = response.headers.get("Retry-After", "")
    return min(_LONGEST_S, float(told)) if told.isdecimal() else backoff


def _given(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _result(read: Callable[[Any], T]) -> Callable[[Any], T]:
    return lambda envelope: read(envelope["result"])


def _each(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    return lambda envelope: tuple(read(item) for item in envelope["result"])


def _nothing(_: Any) -> None:
    return None


def _space(namespace: str) -> str:
    return f"/namespaces/{quote(namespace, safe='')}"


def _repo(namespace: str, name: str) -> str:
    return f"{_space(namespace)}/repos/{quote(name, safe='')}"


def create(
    namespace: str,
    name: str,
    description: str | None,
    read_only: bool,
    default_branch: str,
    anonymous_read: bool | None,
) -> Call[CreatedRepo]:
    body = _given(
        name=name,
        description=description,
        read_only=read_only,
        default_branch=default_branch,
        anonymous_read=anonymous_read,
    )
    return Call("POST", f"{_space(namespace)}/repos", _result(CreatedRepo.of), json=body)


def get(namespace: str, name: str) -> Call[RepoInfo]:
    return Call("GET", _repo(namespace, name), _result(RepoInfo.of))


def update(namespace: str, name: str, **changes: str | bool | None) -> Call[RepoInfo]:
    return Call("PATCH", _repo(namespace, name), _result(RepoInfo.of), json=_given(**changes))


def list_repos(
    namespace: str, limit: int, cursor: str | None, search: str | None
) -> Call[RepoPage]:
    params = _given(limit=limit, cursor=cursor, search=search)
    return Call("GET", f"{_space(namespace)}/repos", RepoPage.of, params=params)


def delete(namespace: str, name: str) -> Call[None]:
    return Call("DELETE", _repo(namespace, name), _nothing)


def import_repo(
    namespace: str,
    name: str,
    url: str,
    branch: str | None,
    depth: int | None,
    read_only: bool,
) -> Call[CreatedRepo]:
    body = _given(url=url, branch=branch, depth=depth, read_only=read_only)
    return Call("POST", f"{_repo(namespace, name)}/import", _result(CreatedRepo.of), json=body)


def fork(
    namespace: str,
    parent: str,
    name: str,
    description: str | None,
    read_only: bool,
    default_branch_only: bool,
    into: str | None,
    anonymous_read: bool | None,
) -> Call[CreatedRepo]:
    body = _given(
        name=name,
        description=description,
        read_only=read_only,
        default_branch_only=default_branch_only,
        namespace=into,
        anonymous_read=anonymous_read,
    )
    return Call("POST", f"{_repo(namespace, parent)}/fork", _result(CreatedRepo.of), json=body)


def create_token(namespace: str, repo: str, scope: Scope, ttl: int) -> Call[CreatedToken]:
    body = {"repo": repo, "scope": scope, "ttl": ttl}
    return Call("POST", f"{_space(namespace)}/tokens", _result(CreatedToken.of), json=body)


def list_tokens(namespace: str, repo: str, state: str, page: int) -> Call[tuple[TokenInfo, ...]]:
    params = {"state": state, "per_page": 100, "page": page}
    return Call("GET", f"{_repo(namespace, repo)}/tokens", _each(TokenInfo.of), params=params)


def revoke_token(namespace: str, token_id: str) -> Call[None]:
    return Call("DELETE", f"{_space(namespace)}/tokens/{quote(token_id, safe='')}", _nothing)


def log(namespace: str, repo: str, ref: str, limit: int, offset: int) -> Call[tuple[Commit, ...]]:
    params = {"ref": ref, "limit": limit, "offset": offset}
    return Call("GET", f"{_repo(namespace, repo)}/log", _each(Commit.of), params=params)


def refs(namespace: str, repo: str) -> Call[tuple[Ref, ...]]:
    return Call("GET", f"{_repo(namespace, repo)}/refs", _each(Ref.of))


def diff(
    namespace: str, repo: str, head: str, base: str | None, paths: Sequence[str]
) -> Call[bytes]:
    params = _given(head=head, base=base, path=list(paths) or None)
    return Call("GET", f"{_repo(namespace, repo)}/diff", bytes, params=params, raw=True)


def read_file(namespace: str, repo: str, path: str, ref: str) -> Call[bytes]:
    params = {"path": path, "ref": ref}
    return Call("GET", f"{_repo(namespace, repo)}/file", bytes, params=params, raw=True)


def write_file(
    namespace: str, repo: str, path: str, data: bytes, **options: str | None
) -> Call[Commit]:
    params = _given(path=path, **options)
    where = f"{_repo(namespace, repo)}/file"
    return Call("PUT", where, _result(Commit.of), content=data, params=params)


def delete_file(namespace: str, repo: str, path: str, **options: str | None) -> Call[Commit]:
    params = _given(path=path, **options)
    return Call("DELETE", f"{_repo(namespace, repo)}/file", _result(Commit.of), params=params)


def list_namespaces() -> Call[tuple[Namespace, ...]]:
    return Call("GET", "/namespaces", _each(Namespace.of), params={"limit": 200})


def unavailable(error: httpx.HTTPError) -> ArtifactsError:
    """A request without an answer, as the error of the client."""
    text = redact(str(error)) or type(error).__name__
    return ArtifactsError(
        f"the server cannot be reached: {text}", code="UNAVAILABLE", numeric_code=0, status=0
    )
