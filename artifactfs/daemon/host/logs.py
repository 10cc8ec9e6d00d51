"""Log lines: one JSON object each on stderr, with fixed field names, secrets removed.

``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``pid``, then ``repo`` in a worker,
and whatever ``extra=`` gave; ``exception`` holds a traceback. One message template of one logger
about one repository is written at most `BURST` times in `WINDOW_S`; the next line that passes says
in ``suppressed`` how many were not. The same words with the same arguments are written once in
`SAME_S`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime

from artifactfs.errors import InvalidInput
from artifactfs.redact import redact

LEVELS = ("debug", "info", "warning", "error")
BURST = 20
WINDOW_S = 10.0
SAME_S = 2.0

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """Formats a record as one line; `fixed` fields are part of each."""

    def __init__(self, **fixed: str) -> None:
        super().__init__()
        self._fixed = fixed

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            "pid": os.getpid(),
            **self._fixed,
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                fields[key] = _plain(value)
        if record.exc_info:
            fields["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(fields)


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "replace"))
    return redact(str(value))


class RateLimit(logging.Filter):
    """Drops repetitions, so that a remote that is down does not fill the disk.

    The very same words are written once in `SAME_S`: one failed read of a program is several of
    the kernel's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[tuple[str, str, str], tuple[float, int]] = {}
        self._said: dict[tuple[str, str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if len(self._windows) + len(self._said) > 2000:
            self._windows.clear()
            self._said.clear()
        said = (record.name, record.getMessage(), _subject(record))
        if record.args and now - self._said.get(said, -SAME_S) < SAME_S:
            return False
        self._said[said] = now
        return self._within_burst(record, now)

    def _within_burst(self, record: logging.LogRecord, now: float) -> bool:
        key = (record.name, str(record.msg), _subject(record))
        start, count = self._windows.get(key, (now, 0))
        if now - start > WINDOW_S:
            if count > BURST:
                record.suppressed = count - BURST
            start, count = now, 0
        self._windows[key] = (start, count + 1)
        return count < BURST


def _subject(record: logging.LogRecord) -> str:
    """The repository that the daemon's own line is about: it says the same of each."""
    return str(getattr(record, "repo", ""))


def set_level(level: str) -> None:
    """Log from `level` on. Raises: InvalidInput."""
    if level not in LEVELS:
        raise InvalidInput(f"{level!r} is not a log level", hint=f"one of {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level.upper())


def configure(level: str, **fixed: str) -> None:
    """Log to stderr from `level` on, replacing an earlier configuration. Raises: InvalidInput."""
    set_level(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter(**fixed))
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for chatty in ("httpx", "httpcore", "hpack", "pyfuse3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
