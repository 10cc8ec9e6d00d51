"""What happened, as the other parts tell it: one call for each operation.

Recording costs the request nothing but an append to a list; `EventLog.run` (in
`artifactfs.server.events.eventlog`) writes it to disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from artifactfs.server.metadata.clock import now_ms

ActionType = Literal["create", "fork", "push", "pull", "delete"]
ErrorType = Literal["storageLimitReached", "serverError", "clientError", "rateLimited"]

ACTIONS: tuple[ActionType, ...] = ("create", "fork", "push", "pull", "delete")
ERRORS: tuple[ErrorType, ...] = (
    "storageLimitReached",
    "serverError",
    "clientError",
    "rateLimited",
)


def error_type(status: int) -> ErrorType:
    """The event type of an answer with that HTTP status, 400 or more."""
    if status == 429:
        return "rateLimited"
    return "serverError" if status >= 500 else "clientError"


@dataclass(frozen=True, slots=True)
class Event:
    """One operation, for the analytics dataset."""

    account_id: str
    namespace: str
    repository: str
    """Name of the repository, empty where the request named none."""
    event_type: ActionType | ErrorType
    duration_ms: float
    error_message: str = ""
    at: int = field(default_factory=now_ms)

    @property
    def kind(self) -> Literal["action", "error"]:
        return "action" if self.event_type in ACTIONS else "error"


@dataclass(frozen=True, slots=True)
class Notice:
    """One event for subscribers: `kind` is what follows ``cf.artifacts.repo.``."""

    account_id: str
    namespace: str
    repository: str
    kind: str
    payload: dict[str, Any]
    at: int = field(default_factory=now_ms)


NOTICE_KINDS = (
    "created",
    "deleted",
    "forked",
    "imported",
    "pushed",
    "cloned",
    "fetched",
    "token.created",
    "token.revoked",
)
