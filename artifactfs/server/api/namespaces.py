"""REST: namespaces."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from fastapi import APIRouter, Query, Response

from artifactfs.server.api.base import CallerOf, ContextOf, NamespaceName, RepositoriesOf
from artifactfs.server.api.paging import list_namespaces
from artifactfs.server.api.schemas import CreateNamespace, Envelope, NamespaceInfo
from artifactfs.server.metadata import catalog
from artifactfs.server.metadata.clock import iso
from artifactfs.server.metadata.database import Transaction
from artifactfs.server.metadata.records import Namespace
from artifactfs.server.problems import Code, Problem, not_found

router = APIRouter(tags=["namespaces"])

Jurisdiction = Literal["unrestricted", "eu", "us"]


def _info(namespace: Namespace, repo_count: int) -> NamespaceInfo:
    return NamespaceInfo(
        namespace=namespace.name,
        jurisdiction=cast(Jurisdiction, namespace.jurisdiction),
        repo_count=repo_count,
        created_at=iso(namespace.created_at),
        updated_at=iso(namespace.updated_at),
    )


@router.post("", status_code=201, summary="Create a namespace")
async def create_namespace(
    caller: CallerOf, context: ContextOf, repositories: RepositoriesOf, body: CreateNamespace
) -> Envelope[NamespaceInfo]:
    name = repositories.check_namespace(body.namespace, "/namespace")
    caller.check_namespace(name)
    jurisdiction = body.jurisdiction or "unrestricted"

    def make(tx: Transaction) -> bool:
        return catalog.ensure_namespace(tx, name, caller.account_id, jurisdiction=jurisdiction)

    if not await context.store.write(make):
        raise Problem(Code.ALREADY_EXISTS, "The namespace already exists", pointer="/namespace")
    made = await context.catalog.namespace(name, caller.account_id)
    if made is None:
        raise not_found("Namespace")
    return Envelope(result=_info(made, 0))


@router.get("", summary="List namespaces")
async def get_namespaces(
    caller: CallerOf,
    context: ContextOf,
    limit: Annotated[int | None, Query(ge=1, le=200)] = None,
    per_page: Annotated[int | None, Query(ge=1, le=200)] = None,
    cursor: Annotated[str | None, Query(max_length=1_000)] = None,
    page: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
) -> Envelope[list[NamespaceInfo]]:
    found, info = await list_namespaces(
        *(context.store, caller.account_id, limit or per_page or 50, cursor, page),
        only=caller.token.namespaces,
    )
    return Envelope(result=[_info(*each) for each in found], result_info=info)


@router.get("/{namespace}", summary="Describe a namespace")
async def get_namespace(
    caller: CallerOf, context: ContextOf, namespace: NamespaceName
) -> Envelope[NamespaceInfo]:
    found = await context.catalog.namespace(namespace, caller.account_id)
    if found is None:
        raise not_found("Namespace")
    return Envelope(result=_info(found, await _repo_count(context, namespace)))


@router.delete(
    "/{namespace}",
    status_code=204,
    response_class=Response,
    summary="Delete an empty namespace",
)
async def delete_namespace(
    caller: CallerOf, context: ContextOf, namespace: NamespaceName
) -> Response:
    if await context.catalog.namespace(namespace, caller.account_id) is None:
        raise not_found("Namespace")

    def remove(tx: Transaction) -> None:
        named = {"name": namespace}
        used = tx.row("SELECT 1 AS one FROM repos WHERE namespace = :name LIMIT 1", named)
        if used is not None:
            raise Problem(Code.CONFLICT, "The namespace still has repositories")
        tx.run("DELETE FROM deleted_repos WHERE namespace = :name", named)
        tx.run("DELETE FROM namespaces WHERE name = :name", named)

    await context.store.write(remove)
    return Response(status_code=204)


async def _repo_count(context: ContextOf, namespace: str) -> int:
    row = await context.store.row(
        "SELECT count(*) AS total FROM repos WHERE namespace = :name", {"name": namespace}
    )
    return 0 if row is None else int(row["total"])
