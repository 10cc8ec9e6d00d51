"""Lists in pages: by cursor (stable while entries come and go) or by page number."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import Any, Literal

from artifactfs.server.api.schemas import ResultInfo
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import Row, Store
from artifactfs.server.metadata.records import Namespace, Repo, RepoToken
from artifactfs.server.problems import Code, Problem

Sort = Literal["created_at", "updated_at", "last_push_at", "name"]

_SORT_SQL = {
    "created_at": "repos.created_at",
    "updated_at": "repos.updated_at",
    "last_push_at": "coalesce(repos.last_push_at, 0)",
    "name": "repos.name",
}
_STATE_SQL = {
    "active": "revoked_at IS NULL AND expires_at > :now",
    "expired": "revoked_at IS NULL AND expires_at <= :now",
    "revoked": "revoked_at IS NOT NULL",
    "all": "1 = 1",
}


@dataclass(frozen=True, slots=True)
class PageQuery:
    """A page by its number, from 1."""

    page: int
    per_page: int


@dataclass(frozen=True, slots=True)
class RepoQuery:
    """Which repositories to list, and in which order."""

    account_id: str
    namespaces: tuple[str, ...] | None
    """None: all of the account."""
    limit: int
    cursor: str | None = None
    page: int | None = None
    search: str | None = None
    sort: Sort = "created_at"
    descending: bool = True


def encode_cursor(*values: Any) -> str:
    """An opaque cursor."""
    return urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode()


def decode_cursor(cursor: str, *kinds: type) -> list[Any]:
    """The values in a cursor. Raises: Problem if it is not one of ours."""
    try:
        values = json.loads(urlsafe_b64decode(cursor.encode()))
    except (ValueError, Base64Error, RecursionError):
        values = None
    if (
        not isinstance(values, list)
        or len(values) != len(kinds)
        or not all(type(value) is kind for value, kind in zip(values, kinds, strict=True))
        or any(isinstance(value, int) and abs(value) >= 2**63 for value in values)
    ):
        raise Problem(Code.INVALID_INPUT, "The cursor is not valid", pointer="/cursor")
    return values


def pages_of(total: int, per_page: int) -> int:
    return -(-total // per_page)


async def list_repos(store: Store, query: RepoQuery) -> tuple[list[Repo], ResultInfo]:
    """One page of repositories. Raises: Problem for a bad cursor."""
    where = "namespaces.account_id = :account"
    params: dict[str, Any] = {"account": query.account_id}
    if query.namespaces is not None:
        where += f" AND {_one_of('repos.namespace', query.namespaces, params)}"
    if query.search:
        where += (
            " AND (lower(repos.name) LIKE :like ESCAPE '\\'"
            " OR lower(repos.description) LIKE :like ESCAPE '\\')"
        )
        params["like"] = f"%{_escape_like(query.search.lower())}%"
    source = "FROM repos JOIN namespaces ON namespaces.name = repos.namespace WHERE " + where
    total = int((await _rows(store, f"SELECT count(*) AS total {source}", params))[0]["total"])
    key = _SORT_SQL[query.sort]
    order, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
    if query.cursor:
        kind = str if query.sort == "name" else int
        value, repo_id = decode_cursor(query.cursor, kind, str)
        source += f" AND ({key} {beyond} :value OR ({key} = :value AND repos.id {beyond} :id))"
        params |= {"value": value, "id": repo_id}
    elif query.page:
        params["skip"] = (query.page - 1) * query.limit
    rows = await _rows(
        store,
        f"SELECT repos.*, namespaces.account_id, {key} AS sort_key {source}"
        f" ORDER BY {key} {order}, repos.id {order} LIMIT :limit OFFSET :skip",
        {"skip": 0, **params, "limit": query.limit + 1},
    )
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    info = ResultInfo(
        cursor=encode_cursor(rows[-1]["sort_key"], rows[-1]["id"]) if more else None,
        page=query.page or 1,
        per_page=query.limit,
        count=len(rows),
        total_count=total,
        total_pages=pages_of(total, query.limit),
    )
    return [Repo.of(row) for row in rows], info


async def list_forks(store: Store, repo: Repo) -> list[tuple[str, str]]:
    """(namespace, name) of the repositories that were forked from one, at most 100."""
    rows = await _rows(
        store,
        "SELECT repos.namespace, repos.name FROM repos JOIN namespaces"
        " ON namespaces.name = repos.namespace WHERE namespaces.account_id = :account"
        " AND repos.status = 'ready' AND repos.source = :source"
        " ORDER BY repos.updated_at DESC LIMIT 100",
        {"account": repo.account_id, "source": f"artifacts:{repo.full_name}"},
    )
    return [(str(row["namespace"]), str(row["name"])) for row in rows]


async def list_tokens(
    store: Store, repo_id: str, state: str, query: PageQuery
) -> tuple[list[RepoToken], ResultInfo]:
    """One page of a repository's tokens, newest first."""
    where = f"FROM tokens WHERE repo_id = :repo AND ({_STATE_SQL[state]})"
    params: dict[str, Any] = {"repo": repo_id, "now": now_ms()}
    total = int((await _rows(store, f"SELECT count(*) AS total {where}", params))[0]["total"])
    rows = await _rows(
        store,
        f"SELECT * {where} ORDER BY created_at DESC, id LIMIT :limit OFFSET :skip",
        {**params, "limit": query.per_page, "skip": (query.page - 1) * query.per_page},
    )
    info = ResultInfo(
        cursor=None,
        page=query.page,
        per_page=query.per_page,
        count=len(rows),
        total_count=total,
        total_pages=pages_of(total, query.per_page),
    )
    return [RepoToken.of(row) for row in rows], info


async def list_namespaces(
    store: Store,
    account_id: str,
    limit: int,
    cursor: str | None,
    page: int | None,
    *,
    only: tuple[str, ...] | None = None,
) -> tuple[list[tuple[Namespace, int]], ResultInfo]:
    """One page of namespaces by name, each with its number of repositories; of `only` these."""
    where = "account_id = :account"
    params: dict[str, Any] = {"account": account_id}
    if only is not None:
        where += f" AND {_one_of('namespaces.name', only, params)}"
    counted = await _rows(store, f"SELECT count(*) AS total FROM namespaces WHERE {where}", params)
    total = int(counted[0]["total"])
    after = decode_cursor(cursor, str)[0] if cursor else ""
    skip = (page - 1) * limit if page and not cursor else 0
    rows = await _rows(
        store,
        "SELECT namespaces.*, (SELECT count(*) FROM repos WHERE repos.namespace = namespaces.name)"
        f" AS repo_count FROM namespaces WHERE {where} AND name > :after"
        " ORDER BY name LIMIT :limit OFFSET :skip",
        {**params, "after": after, "limit": limit + 1, "skip": skip},
    )
    more = len(rows) > limit
    rows = rows[:limit]
    info = ResultInfo(
        cursor=encode_cursor(rows[-1]["name"]) if more else None,
        page=page or 1,
        per_page=limit,
        count=len(rows),
        total_count=total,
        total_pages=pages_of(total, limit),
    )
    return [(Namespace.of(row), int(row["repo_count"])) for row in rows], info


async def _rows(store: Store, sql: str, params: dict[str, Any]) -> list[Row]:
    return await store.rows(sql, params)


def _one_of(column: str, values: tuple[str, ...], params: dict[str, Any]) -> str:
    """The condition; its values are added to `params`."""
    params |= {f"only{number}": value for number, value in enumerate(values)}
    return f"{column} IN ({', '.join(f':only{number}' for number in range(len(values)))})"


def _escape_like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
