"""The control protocol's messages: one JSON object per line.

``{"id", "command", "args"}`` → zero or more ``{"id", "progress": {…}}`` → ``{"id", "result": …}``
or ``{"id", "error": {"type", "message", "hint", "exit_code"}}``; ``{"cancel": ID}`` takes back a
request of those that allow it. A worker also sends ``{"event": NAME, …}`` to its supervisor. An
empty progress object only says "still at it".

Standard library only: the command line imports this on its fast path.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from artifactfs import errors
from artifactfs.errors import ArtifactFSError
from artifactfs.redact import redact

Message = dict[str, Any]

MAX_LINE = 64 << 20  # bytes; a list of all local changes is the longest message

KEEPALIVE_S = 5.0
"""A request that takes longer is reported alive this often, so that silence means trouble."""


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Raises: ValueError for anything but a JSON object."""
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("a message is not nested so deeply") from error
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")
    return message


def error_fields(error: ArtifactFSError) -> Message:
    """The ``error`` member for `error`; secrets removed once more."""
    return {
        "type": type(error).__name__,
        "message": redact(error.message),
        "hint": redact(error.hint) if error.hint else None,
        "exit_code": error.exit_code,
    }


def error_from_fields(fields: Message) -> ArtifactFSError:
    """The exception that `error_fields` described: of the same class where it is known here."""
    kind = getattr(errors, str(fields.get("type")), ArtifactFSError)
    if not (isinstance(kind, type) and issubclass(kind, ArtifactFSError)):
        kind = ArtifactFSError
    error = kind(str(fields.get("message")), hint=fields.get("hint"))
    error.exit_code = int(fields.get("exit_code") or 1)
    return error


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """An address for a Unix socket at `path` that fits into `sun_path` (108 bytes)."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


class _Connection(Protocol):
    def getsockopt(self, level: int, option: int, buffersize: int, /) -> bytes: ...


def peer_uid(connection: _Connection) -> int:
    """The effective uid of the process that connected (``SO_PEERCRED``)."""
    import struct

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)
