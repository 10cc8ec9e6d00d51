"""A running `artifacts-server` process, and the environment of git clients beside it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from sqlalchemy.engine import make_url

from artifactfs.server.storage.installation import Installation
from artifactfs.server.storage.settings import DataLayout
from tests.e2e.processes import IN_USE
from tests.forking import ForkedProcess, servers

ACCOUNT = "0123456789abcdef0123456789abcdef"
SERVER = [sys.executable, "-m", "artifactfs.server.cli"]


@dataclass
class Server:
    """One server process; `restart` after `kill` or `stop` uses the same data folder and port."""

    root: Path
    options: list[str] = field(default_factory=list)
    process: ForkedProcess | None = None
    url: str = ""
    banner: list[str] = field(default_factory=list)
    api_token: str = ""
    database: str | None = None
    """The URL of PostgreSQL."""
    shared_data: Path | None = None
    """A data folder that others serve as well."""

    @property
    def data(self) -> Path:
        return self.shared_data or self.root / "data"

    @property
    def log_path(self) -> Path:
        return self.root / "access.log"

    @property
    def installation(self) -> Installation:
        url = None if self.database is None else make_url(self.database)
        return Installation(DataLayout(self.data), url)

    @property
    def environment(self) -> dict[str, str] | None:
        if self.database is None:
            return None
        return {**os.environ, "ARTIFACTS_DATABASE": self.database}

    def start(self) -> Server:
        listen = urlsplit(self.url).netloc or "127.0.0.1:0"
        said = len(self.errors())
        while not (line := self._listens_on(listen)):
            assert IN_USE in self.errors()[said:], self.errors()
            said = len(self.errors())
            time.sleep(0.1)  # somebody has the port of before for the moment
        assert line.startswith("listening on "), (line, self.errors())
        self.url = line.split()[-1]
        self.banner.append(line)
        if not self.api_token:
            self.api_token = self.make_token()
        return self

    def _listens_on(self, listen: str) -> str:
        """Start it; the first line of what it prints, empty where it has ended."""
        with (self.root / "server.err").open("a") as errors:
            self.process = servers().start(
                *["serve", "--data", str(self.data), "--listen", listen],
                *["--access-log", str(self.log_path), "--log-oids", *self.options],
                environment=self.environment or os.environ,
                stderr=errors,
            )
        return self.process.stdout.readline().decode()

    def make_token(self, permission: str = "edit", account: str = ACCOUNT) -> str:
        return self.command(
            "token", "create", "-q", "--account", account, "--permission", permission
        ).strip()

    def command(self, *arguments: str) -> str:
        """Run an administration command on the data folder; its stdout."""
        words = [*arguments, "--data", str(self.data)]
        done = servers().run(*words, environment=self.environment or os.environ)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        status = self.process.wait(timeout=90)
        self.process = None
        return status

    def errors(self) -> str:
        path = self.root / "server.err"
        return path.read_text() if path.exists() else ""

    def requests(self) -> list[dict[str, Any]]:
        """The access log."""
        if not self.log_path.exists():
            return []
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    @property
    def base(self) -> str:
        return f"/client/v4/accounts/{ACCOUNT}/artifacts"

    def client(self, token: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token or self.api_token}"},
            timeout=30,
        )

    def api(self, method: str, path: str, body: Any = None, /, **params: Any) -> httpx.Response:
        """A call below ``…/artifacts``, by the edit token."""
        with self.client() as client:
            return client.request(method, self.base + path, json=body, params=params)

    def result(self, method: str, path: str, body: Any = None, /, **params: Any) -> Any:
        answer = self.api(method, path, body, **params)
        assert answer.is_success, answer.text
        return answer.json()["result"]

    def create(self, name: str, namespace: str = "team", **fields: Any) -> dict[str, Any]:
        made = self.result("POST", f"/namespaces/{namespace}/repos", {"name": name, **fields})
        assert isinstance(made, dict)
        return made

    def wait_ready(self, name: str, namespace: str = "team") -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            answer = self.api("GET", f"/namespaces/{namespace}/repos/{name}")
            if answer.status_code != 409:
                found: dict[str, Any] = answer.json()["result"]
                return found
        raise AssertionError(f"{name} does not get ready")


def with_token(remote: str, token: str, user: str = "x") -> str:
    """The remote with the token as its password."""
    scheme, _, rest = remote.partition("://")
    return f"{scheme}://{user}:{quote(token, safe='')}@{rest}"


def git_environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Ann",
        "GIT_AUTHOR_EMAIL": "ann@example.org",
        "GIT_COMMITTER_NAME": "Ann",
        "GIT_COMMITTER_EMAIL": "ann@example.org",
        "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
        "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
        "LC_ALL": "C",
    }


Git = Callable[..., str]
ServerFactory = Callable[..., Server]
