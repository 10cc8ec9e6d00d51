"""A secret that a remote says again reaches no output and no log."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

import pytest

from artifactfs.redact import MASK, foreign_text, redact, remember_secret
from tests.e2e.processes import DaemonProcess

SECRET = "pa+ss/w0rd-of-ours=?x"
FORMS = (
    SECRET,
    quote(SECRET, safe=""),
    base64.b64encode(f"me:{SECRET}".encode()).decode(),
    base64.b64encode(SECRET.encode()).decode(),
)


class Echo(BaseHTTPRequestHandler):
    """Refuses everything, and says in many ways what it was told."""

    def do_GET(self) -> None:
        told = self.headers.get("Authorization")
        if told is None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="echo"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        code = base64.b64decode(told.split()[1]).decode()
        password = code.partition(":")[2]
        path = unquote(self.path)
        how = next((part[4:] for part in path.split("/") if part.startswith("echo")), "")
        text = {
            "header": told,
            "bare": f"no such token: {password}",
            "quoted": f"no such token: {quote(password, safe='')}",
            "code": f"cannot read {told.split()[1]}",
            "cut": "x" * 190 + password,
            "terminal": "\x1b[31m".join(password),
        }[how].encode()
        self.send_response(403)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def shows(text: str) -> bool:
    return any(form[:9] in text for form in FORMS)


def test_what_a_server_says_again(daemon: DaemonProcess, echo: str) -> None:
    for how in ("header", "bare", "quoted", "code", "cut", "terminal"):
        url = f"http://me:{quote(SECRET, safe='')}@{echo}/echo{how}/r.git"
        for command in (
            ("add-repo", "--name", "r", "--remote", url),
            ("mount", url, "/tmp/no-tree"),
        ):
            done = daemon.run(*command, check=False)
            assert done.returncode == 1 and "denied access" in done.stderr
            assert not shows(done.stdout + done.stderr), how
    assert not shows(daemon.log.read_text())


@pytest.mark.parametrize(
    "url", ["git:pa+ss/w0rd@host:x.git", "git:pa+ssw0rd@host:x.git", "https:/pa+ssw0rd@host/x"]
)
def test_a_malformed_url_reaches_nobody(daemon: DaemonProcess, url: str) -> None:
    for command in (("add-repo", "--name", "r", "--remote", url), ("mount", url, "/tmp/no-tree")):
        done = daemon.run(*command, check=False)
        assert done.returncode != 0 and "pa+ss" not in done.stdout + done.stderr
        assert "error" in done.stderr.lower()
    assert "pa+ss" not in daemon.log.read_text()


def test_forms_of_a_secret() -> None:
    remember_secret(SECRET, "me")
    for form in FORMS:
        assert redact(f"said '{form}' again") == f"said '{MASK}' again"
    assert not shows(foreign_text(f"x {SECRET[:12]}"))
    assert not shows(foreign_text(f"{SECRET[-12:]} y"))
    remember_secret("abc")
    assert redact("abc") == "abc"


def test_words_that_are_no_secrets() -> None:
    for text in (
        "Basic authentication is not offered",
        "basic configuration",
        'WWW-Authenticate: Basic realm="x"',
        "git@host:path and user@host",
    ):
        assert redact(text) == text
