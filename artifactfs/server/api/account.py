"""REST: what concerns a whole account: usage, webhooks, analytics."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from artifactfs.server.api.base import CallerOf, ContextOf, RepositoriesOf
from artifactfs.server.api.paging import RepoQuery, Sort, list_repos
from artifactfs.server.api.repos import repo_info
from artifactfs.server.api.schemas import Deleted, Envelope, RepoInfo
from artifactfs.server.events.analytics import usage
from artifactfs.server.events.eventlog import DAY_MS
from artifactfs.server.events.events import NOTICE_KINDS
from artifactfs.server.events.graphql_schema import run_query
from artifactfs.server.events.network_guard import Forbidden, Unresolvable
from artifactfs.server.events.webhooks import PREFIX, Webhook
from artifactfs.server.metadata.clock import day_of, iso, now_ms
from artifactfs.server.problems import Code, Problem, not_found

router = APIRouter(tags=["account"])
graphql_router = APIRouter(tags=["analytics"])


class UsageFigures(BaseModel):
    operations: int
    storage_gb_months: float


class NamespaceUsage(UsageFigures):
    namespace: str


class UsageReport(BaseModel):
    since: str
    until: str
    account: UsageFigures
    namespaces: list[NamespaceUsage]


class CreateWebhook(BaseModel):
    url: str = Field(max_length=2_000)
    namespace: str | None = None
    events: list[str] = Field(
        default_factory=lambda: [PREFIX + kind for kind in NOTICE_KINDS], min_length=1
    )


class WebhookInfo(BaseModel):
    id: str
    url: str
    namespace: str | None
    events: list[str]
    created_at: str


class CreatedWebhook(WebhookInfo):
    secret: str = Field(description="key of the signatures; shown once")


class GraphQLRequest(BaseModel):
    query: str = Field(max_length=65_536)
    variables: dict[str, Any] | None = None
    operationName: str | None = None


class GraphQLAnswer(BaseModel):
    data: dict[str, Any] | None
    errors: list[dict[str, Any]] | None


def _info(hook: Webhook) -> dict[str, Any]:
    return {
        "id": hook.id,
        "url": hook.url,
        "namespace": hook.namespace,
        "events": [PREFIX + kind for kind in hook.events],
        "created_at": iso(hook.created_at),
    }


@router.get("/repos", summary="List the repositories of all namespaces")
async def get_all_repos(
    request: Request,
    caller: CallerOf,
    context: ContextOf,
    limit: Annotated[int | None, Query(ge=1, le=200)] = None,
    per_page: Annotated[int | None, Query(ge=1, le=200)] = None,
    cursor: Annotated[str | None, Query(max_length=1_000)] = None,
    page: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    search: Annotated[str | None, Query(max_length=200)] = None,
    sort: Sort = "created_at",
    direction: Literal["asc", "desc"] = "desc",
) -> Envelope[list[RepoInfo]]:
    query = RepoQuery(
        caller.account_id,
        caller.token.namespaces,
        limit or per_page or 50,
        cursor=cursor,
        page=page,
        search=search,
        sort=sort,
        descending=direction == "desc",
    )
    repos, info = await list_repos(context.store, query)
    return Envelope(result=[repo_info(request, context, repo) for repo in repos], result_info=info)


@router.get("/usage", summary="Operations and GB-months")
async def get_usage(
    caller: CallerOf,
    context: ContextOf,
    since: Annotated[date | None, Query(description="first day; default: 30 days ago")] = None,
    until: Annotated[date | None, Query(description="last day; default: today")] = None,
) -> Envelope[UsageReport]:
    caller.check_namespace(None)
    first = str(since) if since else day_of(now_ms() - 30 * DAY_MS)
    last = str(until) if until else day_of(now_ms())
    await context.events.flush()
    account = caller.account_id
    total, *rows = await context.events.store.read(lambda tx: usage(tx, account, first, last))
    return Envelope(
        result=UsageReport(
            since=first,
            until=last,
            account=UsageFigures(operations=total.operations, storage_gb_months=total.gb_months),
            namespaces=[
                NamespaceUsage(
                    namespace=row.namespace or "",
                    operations=row.operations,
                    storage_gb_months=row.gb_months,
                )
                for row in rows
            ],
        )
    )


@router.post("/webhooks", status_code=201, summary="Subscribe to events")
async def create_webhook(
    caller: CallerOf, context: ContextOf, repositories: RepositoriesOf, body: CreateWebhook
) -> Envelope[CreatedWebhook]:
    caller.check_namespace(body.namespace)
    kinds = [event.removeprefix(PREFIX) for event in body.events]
    if not set(kinds) <= set(NOTICE_KINDS) or not all(e.startswith(PREFIX) for e in body.events):
        raise Problem(Code.INVALID_INPUT, "Unknown event type", pointer="/events")
    if body.namespace is not None:
        repositories.check_namespace(body.namespace, "/namespace")
    try:
        made = await context.webhooks.add(
            caller.account_id, body.namespace, body.url, tuple(dict.fromkeys(kinds))
        )
    except (Forbidden, Unresolvable) as error:
        raise Problem(Code.INVALID_URL, str(error), pointer="/url") from None
    return Envelope(result=CreatedWebhook(**_info(made), secret=made.secret))


@router.get("/webhooks", summary="List subscriptions")
async def get_webhooks(caller: CallerOf, context: ContextOf) -> Envelope[list[WebhookInfo]]:
    hooks = [
        hook
        for hook in await context.webhooks.all(caller.account_id)
        if caller.token.namespaces is None
        or (hook.namespace is not None and caller.token.may_use(hook.namespace))
    ]
    return Envelope(result=[WebhookInfo(**_info(hook)) for hook in hooks])


@router.delete("/webhooks/{webhook_id}", summary="Unsubscribe")
async def delete_webhook(
    caller: CallerOf, context: ContextOf, webhook_id: str
) -> Envelope[Deleted]:
    for hook in await context.webhooks.all(caller.account_id):
        if hook.id == webhook_id:
            caller.check_namespace(hook.namespace)
    if not await context.webhooks.remove(caller.account_id, webhook_id):
        raise not_found("Webhook")
    return Envelope(result=Deleted(id=webhook_id))


@graphql_router.post("/graphql", summary="Analytics by GraphQL")
async def graphql(caller: CallerOf, context: ContextOf, body: GraphQLRequest) -> GraphQLAnswer:
    caller.check_namespace(None)
    await context.events.flush()
    account = caller.account_id
    answer = await context.events.store.read(
        lambda tx: run_query(tx, account, body.query, body.variables, body.operationName)
    )
    return GraphQLAnswer(**answer)


class Health(BaseModel):
    status: Literal["ok"]
    version: str
