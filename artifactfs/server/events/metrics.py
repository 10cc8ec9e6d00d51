"""Prometheus metrics. Labels are closed sets: no name of a user ever becomes one."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

from artifactfs.server.events.access_log import RequestRecord
from artifactfs.server.events.events import Event
from artifactfs.server.metadata.database import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600)


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._figures: list[tuple[Gauge, str]] = []
        ProcessCollector(registry=self.registry)
        self._operations = Histogram(
            "artifacts_operation_seconds",
            "Operations and errors by event type",
            ["event_type"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._requests = Counter(
            "artifacts_http_requests", "Requests", ["plane", "status"], registry=self.registry
        )
        self._bytes = Counter(
            "artifacts_http_bytes", "Body bytes", ["direction"], registry=self.registry
        )
        self._deliveries = Counter(
            "artifacts_webhook_deliveries", "Webhook calls", ["outcome"], registry=self.registry
        )

    def operation(self, event: Event) -> None:
        self._operations.labels(event.event_type).observe(event.duration_ms / 1000)

    def request(self, record: RequestRecord) -> None:
        plane = "git" if record.service is not None else "control"
        self._requests.labels(plane, f"{record.status // 100}xx").inc()
        self._bytes.labels("in").inc(record.bytes_in)
        self._bytes.labels("out").inc(record.bytes_out)

    def delivery(self, *, delivered: bool) -> None:
        self._deliveries.labels("delivered" if delivered else "failed").inc()

    def gauge(self, name: str, text: str, value: Callable[[], float] | None = None) -> Gauge:
        """A figure that is looked up when it is asked for, or set by whoever has it."""
        made = Gauge(name, text, registry=self.registry)
        if value is not None:
            made.set_function(value)
        return made

    def figure(self, name: str, text: str, sql: str) -> None:
        """What the database says (as ``n``) when it is asked for."""
        self._figures.append((self.gauge(name, text), sql))

    async def measure(self, store: Store) -> None:
        """Look up the figures of the database. Raises: DatabaseError."""
        for gauge, sql in self._figures:
            row = await store.row(sql)
            gauge.set(0.0 if row is None else float(row["n"] or 0))

    def render(self) -> bytes:
        return generate_latest(self.registry)
