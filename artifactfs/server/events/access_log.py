"""The request log: one JSON object a line, written before the client sees the end of the answer.

Fields: time, method, path (without the query), status, ms, bytes_in, bytes_out; for Git requests
also service, command (``advertise``, ``ls-refs``, ``fetch``, ``object-info``, ``push``), wants
(how many) and, with ``--log-oids``, oids.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from artifactfs.redact import MASK, redact
from artifactfs.server.metadata.clock import iso, now_ms

log = logging.getLogger(__name__)

_TOKEN_OR_ID = re.compile(r"(/tokens/)([^/]+)")
_ID = re.compile(r"[0-9a-z]{16}")


def _masked(match: re.Match[str]) -> str:
    return match[1] + (match[2] if _ID.fullmatch(match[2]) else MASK)


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request; the fields grow while it is served."""

    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    service: str | None = None
    command: str | None = None
    wants: int | None = None
    oids: list[str] | None = None
    logged: bool = False

    def __post_init__(self) -> None:
        """A path may hold a secret: ``DELETE …/tokens/TOKEN``."""
        self.path = _TOKEN_OR_ID.sub(_masked, redact(self.path))

    @property
    def ms(self) -> float:
        return round((time.perf_counter() - self.started) * 1000, 2)

    def as_dict(self) -> dict[str, Any]:
        known = {
            "time": iso(now_ms()),
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": self.ms,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "service": self.service,
            "command": self.command,
            "wants": self.wants,
            "oids": self.oids,
        }
        return {key: value for key, value in known.items() if value is not None}


class AccessLog:
    """Appends to a file; without a path it does nothing."""

    def __init__(self, path: Path | None, *, oids: bool = False) -> None:
        self._file = path.open("a", buffering=1) if path is not None else None
        self.wants_oids = oids and path is not None
        self._failing = False
        self._listener: Callable[[RequestRecord], None] | None = None

    def also(self, listener: Callable[[RequestRecord], None]) -> None:
        """Tell `listener` of each request, too."""
        self._listener = listener

    def write(self, record: RequestRecord) -> None:
        """Log a request, once."""
        if record.logged:
            return
        record.logged = True
        if self._listener is not None:
            self._listener(record)
        if self._file is not None:
            self._append(self._file, json.dumps(record.as_dict(), separators=(",", ":")) + "\n")

    def _append(self, file: TextIO, line: str) -> None:
        """Write a line; on a full disk it is lost, which is better than the request."""
        try:
            file.write(line)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("the access log cannot be written: %s", error.strerror)
            self._failing = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
