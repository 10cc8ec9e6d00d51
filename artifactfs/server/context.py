"""What every part of a running server shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio

from artifactfs.server.access_log import AccessLog
from artifactfs.server.catalog import Catalog
from artifactfs.server.database import Store
from artifactfs.server.events import Event, Notice
from artifactfs.server.limits import RateLimiter
from artifactfs.server.settings import DataLayout, Limits, ServerSettings


class EventSink(Protocol):
    """Where operations are reported. Neither call blocks."""

    def record(self, event: Event) -> None: ...

    def notify(self, notice: Notice) -> None: ...


@dataclass(slots=True, kw_only=True)
class Context:
    """One running server."""

    settings: ServerSettings
    git: str
    advertisement: bytes
    """What upload-pack answers to a protocol v2 handshake: the same for every repository."""
    store: Store
    catalog: Catalog
    events: EventSink
    access_log: AccessLog
    control_limiter: RateLimiter
    git_limiter: RateLimiter
    git_turns: trio.Semaphore
    background: trio.Nursery

    @property
    def layout(self) -> DataLayout:
        return self.settings.layout

    @property
    def limits(self) -> Limits:
        return self.settings.limits
