"""An HTTP proxy with a password, as curl uses it: CONNECT for https, whole URLs for http."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class HttpProxy:
    """`asked` has the first line of each request that it let through."""

    port: int
    accept: str | None = None
    asked: list[str] = field(default_factory=list)


@contextmanager
def http_proxy(accept: str | None = None) -> Iterator[HttpProxy]:
    """Run one that takes "user:password" (None: everybody)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = HttpProxy(listener.getsockname()[1], accept)

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_serve, args=(proxy, client), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)


def _serve(proxy: HttpProxy, client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = client.recv(65536)
            if not chunk:
                return
            head += chunk
        lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        wanted = base64.b64encode((proxy.accept or "").encode()).decode()
        told = [line.rpartition(" ")[2] for line in lines if line.lower().startswith("proxy-auth")]
        if proxy.accept is not None and told != [wanted]:
            client.sendall(
                b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="p"\r\n'
                b"Content-Length: 0\r\n\r\n"
            )
            return
        proxy.asked.append(lines[0])
        method, target, _ = lines[0].split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as server:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:  # one request for a connection: the next one may be for another server
                first = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
                server.sendall(first)
            _pump(client, server)


def _pump(client: socket.socket, server: socket.socket) -> None:
    while True:
        for ready in select.select([client, server], [], [], 30)[0]:
            data = ready.recv(65536)
            if not data:
                return
            (server if ready is client else client).sendall(data)
