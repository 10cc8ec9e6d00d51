"""The process that writes a primed index, beside the mount.

It lists the tree while the sizes of the files are on their way, and writes when it is told so.

A line of JSON has it list: the arguments of `Priming`, paths as text, bytes in hex. Each further
line has it write, and is answered by one line. It ends with its input.

``{"need_attributes": true}`` → ``{"written": true, "entries": …, "unknown_sizes": …}``, or
``{"written": false, "reason": …}`` where git has an index already or is at work, and with a list
"missing" where attribute files are needed, or ``{"error": …}``.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from artifactfs.errors import ArtifactFSError
from artifactfs.git.index.primed import AttributesMissing, IndexExists, IndexLocked, Priming
from artifactfs.git.objects.database import MissingObject

_PATHS = ("gitdir", "worktree", "sizes", "conversion")
_BYTES = ("tree", "ino_secret")
_EXPECTED = (ArtifactFSError, MissingObject, OSError)


def encode_options(**options: Any) -> dict[str, Any]:
    """The arguments of `Priming` for a line of JSON."""
    encoded = {**options}
    for name in _PATHS:
        if encoded.get(name) is not None:
            encoded[name] = str(encoded[name])
    for name in _BYTES:
        encoded[name] = encoded[name].hex()
    return encoded


def _decoded(options: dict[str, Any]) -> dict[str, Any]:
    for name in _PATHS:
        if options.get(name) is not None:
            options[name] = Path(options[name])
    for name in _BYTES:
        options[name] = bytes.fromhex(options[name])
    return options


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until `requests` ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that index.lock goes with us
    first = requests.readline()
    if not first:
        return
    priming = Priming(**_decoded(json.loads(first)))
    with suppress(*_EXPECTED):  # said when it is to be written
        priming.listing()
    for line in requests:
        answer = _write(priming, **json.loads(line))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _write(priming: Priming, *, need_attributes: bool) -> dict[str, Any]:
    try:
        written = priming.write(need_attributes=need_attributes)
    except AttributesMissing as error:
        missing = [oid.hex() for oid in error.oids]
        return {"written": False, "reason": error.message, "missing": missing}
    except (IndexExists, IndexLocked) as error:
        return {"written": False, "reason": error.message}
    except _EXPECTED as error:
        return {"error": str(error)}
    return {"written": True, **asdict(written)}


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
