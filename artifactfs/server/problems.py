"""Errors of the control plane: code, number, HTTP status."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Code(Enum):
    """The codes of the interface: (number, HTTP status)."""

    AUTHENTICATION = (10000, 403)
    INVALID_INPUT = (10100, 400)
    INVALID_REPO_NAME = (10101, 400)
    INVALID_TTL = (10103, 400)
    INVALID_URL = (10104, 400)
    REMOTE_AUTH_REQUIRED = (10106, 422)
    NOT_FOUND = (10200, 404)
    ALREADY_EXISTS = (10201, 409)
    CONFLICT = (10202, 409)
    MERGE_CONFLICT = (10203, 409)
    IMPORT_IN_PROGRESS = (10302, 409)
    FORK_IN_PROGRESS = (10303, 409)
    INTERNAL_ERROR = (10400, 500)
    UPSTREAM_UNAVAILABLE = (10401, 502)
    MEMORY_LIMIT = (10402, 413)
    METHOD_NOT_ALLOWED = (10405, 405)
    TOO_SLOW = (10408, 408)
    RATE_LIMITED = (10429, 429)
    BUSY = (10503, 503)
    STORAGE_LIMIT = (10403, 413)

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def status(self) -> int:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path that does not merge, and why, in git's words: ``contents``, ``modify/delete`` …"""

    path: str
    kind: str


class Problem(Exception):
    """A request that cannot be granted; the answer is an envelope with this error.

    `pointer`: JSON pointer of the field at fault. `retry_after`: seconds after which the same
    request may succeed. `conflicts`: what does not merge.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        pointer: str | None = None,
        retry_after: int | None = None,
        conflicts: Sequence[Conflict] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.pointer = pointer
        self.retry_after = retry_after
        self.conflicts = conflicts


_SCARCE = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


def is_scarcity(error: OSError) -> bool:
    """Whether the machine has no descriptor, process or memory left: it will have, later."""
    return error.errno in _SCARCE


def database_away() -> Problem:
    """Nothing was changed, and nothing can be: the client may try again."""
    return Problem(Code.BUSY, "The database is away", retry_after=5)


def not_found(what: str) -> Problem:
    """NOT_FOUND with the usual words."""
    return Problem(Code.NOT_FOUND, f"{what} not found")
