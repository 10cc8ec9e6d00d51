"""Every call of the interface as data: what to send, and how to read the answer.

The synchronous and the asynchronous client differ only in how they carry these out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from artifactfs.client.models import (
    ArchiveFormat,
    ArtifactsError,
    Commit,
    Comparison,
    CreatedRepo,
    CreatedToken,
    Direction,
    Jurisdiction,
    MergeResult,
    Namespace,
    NamespacePage,
    Ref,
    RepoInfo,
    RepoPage,
    Scope,
    Sort,
    SyncResult,
    TokenList,
    TreeEntry,
    UsageReport,
    Webhook,
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
    """One request below the account's base path, or (`top`) below the interface's.

    `read` gets the decoded answer, or its bytes where it is `raw`.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    json: Mapping[str, Any] | None = None
    content: bytes | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False
    top: bool = False

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
    namespace: str | None,
    limit: int,
    cursor: str | None,
    page: int | None,
    search: str | None,
    sort: Sort | None,
    direction: Direction | None,
) -> Call[RepoPage]:
    params = _given(
        limit=limit, cursor=cursor, page=page, search=search, sort=sort, direction=direction
    )
    where = "/repos" if namespace is None else f"{_space(namespace)}/repos"
    return Call("GET", where, RepoPage.of, params=params)


def delete(namespace: str, name: str) -> Call[None]:
    return Call("DELETE", _repo(namespace, name), _nothing)


def import_repo(
    namespace: str,
    name: str,
    url: str,
    branch: str | None,
    depth: int | None,
    description: str | None,
    read_only: bool,
    username: str | None,
    password: str | None,
) -> Call[CreatedRepo]:
    body = _given(
        url=url,
        branch=branch,
        depth=depth,
        description=description,
        read_only=read_only,
        username=username,
        password=password,
    )
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


def list_tokens(namespace: str, repo: str, state: str, page: int) -> Call[TokenList]:
    params = {"state": state, "per_page": 100, "page": page}
    return Call("GET", f"{_repo(namespace, repo)}/tokens", TokenList.of, params=params)


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


def compare(namespace: str, repo: str, **params: str | int | None) -> Call[Comparison]:
    where = f"{_repo(namespace, repo)}/compare"
    return Call("GET", where, _result(Comparison.of), params=_given(**params))


def compare_diff(namespace: str, repo: str, **params: str | None) -> Call[bytes]:
    where = f"{_repo(namespace, repo)}/compare/diff"
    return Call("GET", where, bytes, params=_given(**params), raw=True)


def merge(namespace: str, repo: str, **options: str | None) -> Call[MergeResult]:
    where = f"{_repo(namespace, repo)}/merge"
    return Call("POST", where, _result(MergeResult.of), json=_given(**options))


def sync(namespace: str, repo: str, **options: str | bool | None) -> Call[SyncResult]:
    where = f"{_repo(namespace, repo)}/sync"
    return Call("POST", where, _result(SyncResult.of), json=_given(**options))


def delete_ref(namespace: str, repo: str, ref: str, expected: str | None) -> Call[None]:
    where = f"{_repo(namespace, repo)}/refs/{quote(ref.removeprefix('refs/'))}"
    return Call("DELETE", where, _nothing, params=_given(expected=expected))


def archive(namespace: str, repo: str, ref: str, path: str, format: ArchiveFormat) -> Call[bytes]:
    params = {"ref": ref, "path": path, "format": format}
    return Call("GET", f"{_repo(namespace, repo)}/archive", bytes, params=params, raw=True)


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


def commit(namespace: str, repo: str, hash: str) -> Call[Commit]:
    return Call("GET", f"{_repo(namespace, repo)}/commit/{quote(hash)}", _result(Commit.of))


def tree(namespace: str, repo: str, hash: str) -> Call[tuple[TreeEntry, ...]]:
    return Call("GET", f"{_repo(namespace, repo)}/tree/{quote(hash)}", _each(TreeEntry.of))


def blob(namespace: str, repo: str, hash: str) -> Call[bytes]:
    return Call("GET", f"{_repo(namespace, repo)}/blob/{quote(hash)}", bytes, raw=True)


def create_namespace(namespace: str, jurisdiction: Jurisdiction | None) -> Call[Namespace]:
    body = _given(namespace=namespace, jurisdiction=jurisdiction)
    return Call("POST", "/namespaces", _result(Namespace.of), json=body)


def get_namespace(namespace: str) -> Call[Namespace]:
    return Call("GET", _space(namespace), _result(Namespace.of))


def list_namespaces(limit: int, cursor: str | None) -> Call[NamespacePage]:
    return Call("GET", "/namespaces", NamespacePage.of, params=_given(limit=limit, cursor=cursor))


def delete_namespace(namespace: str) -> Call[None]:
    return Call("DELETE", _space(namespace), _nothing)


def usage(since: date | None, until: date | None) -> Call[UsageReport]:
    return Call("GET", "/usage", _result(UsageReport.of), params=_given(since=since, until=until))


def create_webhook(url: str, namespace: str | None, events: Sequence[str] | None) -> Call[Webhook]:
    body = _given(url=url, namespace=namespace, events=list(events) if events else None)
    return Call("POST", "/webhooks", _result(Webhook.of), json=body)


def list_webhooks() -> Call[tuple[Webhook, ...]]:
    return Call("GET", "/webhooks", _each(Webhook.of))


def delete_webhook(webhook_id: str) -> Call[None]:
    return Call("DELETE", f"/webhooks/{quote(webhook_id, safe='')}", _nothing)


def analytics(query: str, variables: Mapping[str, Any] | None) -> Call[Mapping[str, Any]]:
    body = _given(query=query, variables=variables)
    return Call("POST", "/graphql", _analytics, json=body, top=True)


def _analytics(answer: Any) -> Mapping[str, Any]:
    """The ``data`` of a GraphQL answer. Raises: ArtifactsError for its errors."""
    if answer.get("errors"):
        said = "; ".join(str(error.get("message")) for error in answer["errors"])
        raise ArtifactsError(said, code="INVALID_INPUT", numeric_code=10100, status=200)
    data: Mapping[str, Any] = answer["data"]
    return data


def unavailable(error: httpx.HTTPError) -> ArtifactsError:
    """A request without an answer, as the error of the client."""
    text = redact(str(error)) or type(error).__name__
    return ArtifactsError(
        f"the server cannot be reached: {text}", code="UNAVAILABLE", numeric_code=0, status=0
    )
