"""``git http-backend`` behind a small threaded HTTP/1.1 server, with faults to order.

It is deliberately not the bundled server: what a plain Git host answers is the measure here.
"""

from __future__ import annotations

import base64
import gzip
import os
import socket
import ssl
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from artifactfs.git.pack import format as packformat
from artifactfs.pktline import Packet, encode, next_packet


@dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    protocol: str | None
    authorization: str | None
    encoding: str | None
    body: bytes
    connection: int
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def command(self) -> str:
        """``ls-refs``, ``fetch``…; ``info/refs`` for the advertisement."""
        if self.method == "GET":
            return self.path.partition("?")[0].rpartition(".git/")[2]
        return self.body[4:].partition(b"\n")[0].removeprefix(b"command=").decode()


@dataclass
class Backend:
    """What the server does; tests change it while it runs."""

    root: Path
    version_2: bool = True
    object_info: bool = True  # False hides it
    refuses_object_info: bool = False  # though it says that it has it
    accept: set[str] | None = None  # "user:password"; None: everybody
    refuse_with: int = 401
    redirects: dict[str, str] = field(default_factory=dict)  # path prefix → new base
    redirects_strangers: bool = True  # False: only who has the right credentials
    status: int | None = None  # answer everything with it
    busy: list[int] = field(default_factory=list)  # answer so, once each; 0: hang up
    cut_after: int | None = None  # bytes of a fetch's answer
    tells: dict[bytes, int] = field(default_factory=dict)  # sizes by oid: what it lies
    endless: bool = False  # each fetch is answered by one object of 1 TB of zeros
    pack_version: int = 2  # of what is endless; git refuses others at once
    given_up: threading.Event = field(default_factory=threading.Event)  # by who got such a thing
    stall: threading.Event | None = None  # answer no POST before it is set
    stalled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    close_each: bool = False
    wants: set[tuple[str, str]] = field(default_factory=set)  # headers, names in lower case
    challenge: str = 'Basic realm="x"'
    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def commands(self) -> list[str]:
        return [request.command for request in self.seen]


def _handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            self.answer(body)

        def answer(self, body: bytes) -> None:
            authorization = self.headers.get("Authorization")
            backend.seen.append(
                Seen(
                    self.command,
                    self.path,
                    self.headers.get("Git-Protocol"),
                    authorization,
                    self.headers.get("Content-Encoding"),
                    body,
                    self.client_address[1],
                    self.headers.items(),
                )
            )
            if not backend.wants <= {(name.lower(), value) for name, value in self.headers.items()}:
                return self.plain(403, b"something is missing")
            if not backend.redirects_strangers and _pair(authorization) not in (
                backend.accept or ()
            ):
                return self.refuse()
            for prefix, base in backend.redirects.items():
                if self.path.startswith(prefix):
                    return self.plain(302, b"", Location=base + self.path.removeprefix(prefix))
            if backend.busy:
                status = backend.busy.pop(0)
                if status:
                    return self.plain(status, b"busy", **{"Retry-After": "1"})
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return None
            if backend.status is not None:
                return self.plain(backend.status, b"no")
            if backend.accept is not None and _pair(authorization) not in backend.accept:
                return self.refuse()
            if backend.stall is not None and self.command == "POST":
                backend.stalled.release()
                backend.stall.wait(30)
            if backend.refuses_object_info and b"command=object-info" in body:
                return self.plain(200, b"0018ERR unknown command\n")
            if backend.endless and b"command=fetch" in body:
                return self.answer_without_end()
            return self.run_backend(body)

        def refuse(self) -> None:
            challenge = {"WWW-Authenticate": backend.challenge}
            self.plain(backend.refuse_with, b"denied", **challenge)

        def answer_without_end(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-git-upload-pack-result")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            header = struct.pack(">4sLL", b"PACK", backend.pack_version, 1)
            header += packformat.encode_entry(3, 1 << 40)
            deflater = zlib.compressobj(1)
            try:
                self.wfile.write(b"d\r\n000dpackfile\n\r\n")
                data = header
                while True:
                    for start in range(0, len(data), 60_000):
                        packet = encode([b"\1" + data[start : start + 60_000]])
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(packet), packet))
                    data = deflater.compress(bytes(1 << 20))
            except OSError:
                backend.given_up.set()
                self.close_connection = True

        def plain(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Type": "text/plain"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def run_backend(self, body: bytes) -> None:
            parts = urlsplit(self.path)
            environment = os.environ | {
                "GIT_PROJECT_ROOT": str(backend.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": parts.path,
                "QUERY_STRING": parts.query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "REMOTE_ADDR": "127.0.0.1",
            }
            if backend.version_2 and "Git-Protocol" in self.headers:
                environment["GIT_PROTOCOL"] = self.headers["Git-Protocol"]
            output = subprocess.run(
                ["git", "http-backend"], input=body, env=environment, capture_output=True
            ).stdout
            head, _, content = output.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            status = int(fields.pop("Status", "200").split()[0])
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if not backend.object_info:  # git before 2.42 cannot turn it off
                content = content.replace(b"0010object-info\n", b"")
            if backend.tells and b"command=object-info" in body:
                content = _with_sizes(content, backend.tells)
            if backend.cut_after is not None and self.command == "POST":
                content = content[: backend.cut_after]
            for start in range(0, len(content), 10_000):
                piece = content[start : start + 10_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if backend.cut_after is None or self.command != "POST":
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.close_connection = True
            if backend.close_each:
                self.close_connection = True

    return Handler


def _with_sizes(answer: bytes, tells: dict[bytes, int]) -> bytes:
    """The answer to object-info, with other sizes."""
    packets: list[Packet] = []
    at = 0
    while (found := next_packet(answer, at)) is not None:
        packet, length = found
        at += length
        oid = packet.partition(b" ")[0] if isinstance(packet, bytes) else b""
        if len(oid) == 40 and (told := tells.get(bytes.fromhex(oid.decode()))) is not None:
            packet = b"%s %d" % (oid, told)
        packets.append(packet)
    return encode(packets)


def _pair(authorization: str | None) -> str | None:
    kind, _, value = (authorization or "").partition(" ")
    return base64.b64decode(value).decode() if kind == "Basic" else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients of these tests hang up in the middle."""


@contextmanager
def http_backend(
    root: Path, certificate: Path | None = None, *, clients: Path | None = None
) -> Iterator[Backend]:
    """Serve the repositories below `root` on a free port of the loopback, over TLS with a
    `certificate` (and its key, in the same file). Only clients with a certificate that `clients`
    signed are let in, where that is given."""
    backend = Backend(root)
    server = _Server(("127.0.0.1", 0), _handler(backend))
    backend.port = server.server_address[1]
    if certificate is not None:
        backend.scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
