"""What needs no token: health and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

import artifactfs
from artifactfs.server.api.account import Health
from artifactfs.server.api.base import ContextOf
from artifactfs.server.events.metrics import CONTENT_TYPE

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Is the server well?")
async def get_health(context: ContextOf) -> Health:
    await context.store.row("SELECT 1 AS one")
    return Health(status="ok", version=artifactfs.__version__)


@router.get("/metrics", response_class=Response, summary="Prometheus metrics")
async def get_metrics(request: Request, context: ContextOf) -> Response:
    await context.metrics.measure(context.store)
    return Response(context.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
