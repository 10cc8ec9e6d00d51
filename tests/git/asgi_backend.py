"""`git http-backend` as an ASGI application, for a server that speaks HTTP/2:
``GIT_PROJECT_ROOT=… python -m hypercorn -k trio … tests.git.asgi_backend:app``.

The answer says in ``X-Http-Version`` what it was asked with.
"""

from __future__ import annotations

import gzip
import os
import subprocess
from typing import Any

import trio


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = dict(scope["headers"])
    if headers.get(b"content-encoding") == b"gzip":
        body = gzip.decompress(body)
    environment = os.environ | {
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": scope["path"],
        "QUERY_STRING": scope["query_string"].decode(),
        "CONTENT_TYPE": headers.get(b"content-type", b"").decode(),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": headers.get(b"git-protocol", b"").decode(),
    }
    done = await trio.run_process(
        ["git", "http-backend"], stdin=body, capture_stdout=True, env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.splitlines())
    status = int(fields.pop(b"Status", b"200").split()[0])
    answered = [(name.lower(), value) for name, value in fields.items()]
    answered.append((b"x-http-version", scope["http_version"].encode()))
    await send({"type": "http.response.start", "status": status, "headers": answered})
    return await send({"type": "http.response.body", "body": content})
