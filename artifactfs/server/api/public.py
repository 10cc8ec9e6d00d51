"""What needs no token: health and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

import artifactfs
from artifactfs.server.api.account import Health
from artifactfs.server.api.base import ContextOf
from artifactfs.server.context import Context
from artifactfs.server.events.metrics import CONTENT_TYPE
from artifactfs.server.problems import Code, Problem, database_away

router = APIRouter(tags=["operation"])


_WELL = Health(status="ok", version=artifactfs.__version__)


@router.get("/healthz", summary="Can the server be sent requests?")
async def get_health(context: ContextOf) -> Health:
    await _check_ready(context)
    return _WELL


@router.get("/healthz/ready", summary="Can the server be sent requests?")
async def get_ready(context: ContextOf) -> Health:
    await _check_ready(context)
    return _WELL


@router.get("/healthz/live", summary="Is the process well?")
async def get_live() -> Health:
    return _WELL


async def _check_ready(context: Context) -> None:
    """Raises: Problem, DatabaseError."""
    if context.draining:
        raise Problem(Code.BUSY, "The server is about to stop", retry_after=1)
    if not await context.standing.is_here():
        raise database_away()
    await context.store.row("SELECT 1 AS one")


@router.get("/metrics", response_class=Response, summary="Prometheus metrics")
async def get_metrics(request: Request, context: ContextOf) -> Response:
    await context.metrics.measure(context.store)
    return Response(context.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
