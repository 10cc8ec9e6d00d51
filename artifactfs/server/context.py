"""What every part of a running server shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from artifactfs.server.cluster.standing import Standing
from artifactfs.server.events.access_log import AccessLog
from artifactfs.server.events.eventlog import EventLog
from artifactfs.server.events.metrics import Metrics
from artifactfs.server.events.webhooks import Webhooks
from artifactfs.server.metadata.catalog import Catalog
from artifactfs.server.metadata.database import Store
from artifactfs.server.metadata.limits import Limiter
from artifactfs.server.storage.open_marks import OpenMarks
from artifactfs.server.storage.settings import DataLayout, Limits, ServerSettings


@dataclass(slots=True, kw_only=True)
class Context:
    """One running server."""

    settings: ServerSettings
    git: str
    advertisement: bytes
    """What upload-pack answers to a protocol v2 handshake: the same for every repository."""
    store: Store
    catalog: Catalog
    events: EventLog
    webhooks: Webhooks
    metrics: Metrics
    access_log: AccessLog
    marks: OpenMarks
    standing: Standing
    control_limiter: Limiter
    git_limiter: Limiter
    git_turns: trio.Semaphore
    content_turns: trio.Semaphore
    background: trio.Nursery
    look_at_packs: Callable[[str], Awaitable[None]]
    """Given the id of a repository that something was pushed to."""
    draining: bool = False
    """Told to stop, and still answering until the balancer has noticed."""

    @property
    def layout(self) -> DataLayout:
        return self.settings.layout

    @property
    def limits(self) -> Limits:
        return self.settings.limits
