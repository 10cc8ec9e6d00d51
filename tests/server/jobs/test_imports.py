"""Imports of repositories of other Git servers."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.git.http_backend import Backend, http_backend
from tests.server.running import Git, Server, ServerFactory, with_token


@pytest.fixture
def elsewhere(tmp_path: Path, git: Git, work: Path) -> Iterator[Backend]:
    """A plain Git host with `work` on it, as `demo.git`."""
    root = tmp_path / "elsewhere"
    git("clone", "-q", "--bare", work, root / "demo.git")
    git("branch", "side", "main~1", cwd=root / "demo.git")
    with http_backend(root) as backend:
        yield backend


def start_import(server: Server, name: str, **body: object) -> tuple[int, dict[str, object]]:
    answer = server.api("POST", f"/namespaces/team/repos/{name}/import", body)
    return answer.status_code, answer.json()


def code_of(body: dict[str, object]) -> int:
    return int(body["errors"][0]["code"])  # type: ignore[index]


def test_import_brings_all_refs(
    server: Server, git: Git, elsewhere: Backend, name: str, tmp_path: Path
) -> None:
    url = f"{elsewhere.url}/demo.git"
    status, body = start_import(server, name, url=url)
    assert status == 201
    info = server.wait_ready(name)
    assert info["source"] == f"git:{url}" and info["default_branch"] == "main"
    made = body["result"]
    remote = with_token(made["remote"], made["token"])  # type: ignore[index]
    assert git("ls-remote", remote) == git("ls-remote", url)
    git("clone", "-q", remote, tmp_path / "copy")
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "copy") == "2\n"


def test_branch_and_depth(
    server: Server, git: Git, elsewhere: Backend, name: str, tmp_path: Path
) -> None:
    url = f"{elsewhere.url}/demo.git"
    status, body = start_import(server, name, url=url, branch="side", depth=1, read_only=True)
    assert status == 201
    assert server.wait_ready(name)["default_branch"] == "side"
    made = body["result"]
    remote = with_token(made["remote"], made["token"])  # type: ignore[index]
    assert "refs/heads/main" not in git("ls-remote", remote)
    forked = server.result("POST", f"/namespaces/team/repos/{name}/fork", {"name": f"{name}-f"})
    for number, each in enumerate((remote, with_token(forked["remote"], forked["token"]))):
        copy = tmp_path / f"copy{number}"
        git("clone", "-q", each, copy)
        assert git("rev-list", "--count", "HEAD", cwd=copy) == "1\n"


class _FileServer(ThreadingHTTPServer):
    """Hands out the files below a folder, on the IPv6 loopback too."""

    def __init__(self, root: Path, address: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.paths: list[str] = []
        super().__init__((address, 0), partial(_Files, directory=str(root)))
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        assert isinstance(self.server, _FileServer)
        self.server.paths.append(self.path)


@pytest.fixture
def files(tmp_path: Path, git: Git, work: Path) -> Path:
    """A folder with `work` as `demo.git`, for servers that know nothing of git."""
    root = tmp_path / "files"
    git("clone", "-q", "--bare", work, root / "demo.git")
    git("update-server-info", cwd=root / "demo.git")
    return root


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_that_only_hands_out_files(
    server: Server, files: Path, name: str, address: str
) -> None:
    with _FileServer(files, address) as http:
        url = f"{http.url}/demo.git".replace("http", "HTTP")
        status, body = start_import(server, name, url=url)
        assert status == 201, body
        info = server.wait_ready(name)
        assert (info["default_branch"], info["source"]) == ("main", f"git:{url}")
    assert len(server.result("GET", f"/namespaces/team/repos/{name}/log")) == 2


def test_alternates_of_a_remote_are_not_followed(server: Server, files: Path, name: str) -> None:
    """They could name any host."""
    inside = files.with_name("inside")
    shutil.move(files / "demo.git" / "objects", inside / "objects")
    with _FileServer(files) as outer, _FileServer(inside) as inner:
        info = files / "demo.git" / "objects" / "info"
        info.mkdir(parents=True)
        for file in ("http-alternates", "alternates"):
            (info / file).write_text(f"{inner.url}/objects\n")
        status, body = start_import(server, name, url=f"{outer.url}/demo.git")
        assert (status, code_of(body)) == (502, 10401), body
        assert any("alternates" in path for path in outer.paths)
        assert not inner.paths
    assert server.api("GET", f"/namespaces/team/repos/{name}").status_code == 404


def test_redirects_are_followed_and_checked(
    server: Server, guarded_server: Server, elsewhere: Backend, name: str
) -> None:
    elsewhere.redirects["/moved.git"] = "/demo.git"
    status, body = start_import(server, name, url=f"{elsewhere.url}/moved.git")
    assert status == 201, body
    server.wait_ready(name)
    elsewhere.redirects["/away.git"] = "ftp://127.0.0.1/x"
    status, body = start_import(server, f"{name}-b", url=f"{elsewhere.url}/away.git")
    assert (status, code_of(body)) == (400, 10104)


def test_wrong_urls_are_told_at_once_and_take_no_name(
    server: Server, elsewhere: Backend, name: str
) -> None:
    status, body = start_import(server, name, url=f"{elsewhere.url}/absent.git")
    assert (status, code_of(body)) == (400, 10104)
    status, body = start_import(server, name, url=f"{elsewhere.url}/demo.git", branch="nope")
    assert (status, code_of(body)) == (400, 10100)
    status, body = start_import(server, name, url="http://127.0.0.1:1/x.git")
    assert (status, code_of(body)) == (502, 10401)
    for url in (
        "ftp://example.org/x",
        "https://u:p@example.org/x",
        "https://",
        "/etc",
        "https://[x",
        f"{elsewhere.url}/demo.git#x",
        f"{elsewhere.url}/demo.git?x",
        "https://localhost./x",
        "https://fa\u00df.de/x",
    ):
        status, body = start_import(server, name, url=url)
        assert (status, code_of(body)) == (400, 10104)
    elsewhere.accept = {"someone:secret"}
    status, body = start_import(server, name, url=f"{elsewhere.url}/demo.git")
    assert (status, code_of(body)) == (422, 10106)
    assert server.api("GET", f"/namespaces/team/repos/{name}").status_code == 404


def test_a_slow_import_answers_409_until_it_is_ready(
    server: Server, elsewhere: Backend, name: str
) -> None:
    elsewhere.stall = threading.Event()
    status, _ = start_import(server, name, url=f"{elsewhere.url}/demo.git")
    assert status == 201
    busy = server.api("GET", f"/namespaces/team/repos/{name}")
    assert busy.status_code == 409 and code_of(busy.json()) == 10302
    assert busy.headers["Retry-After"]
    listed = server.result("GET", "/namespaces/team/repos", search=name)
    assert listed[0]["status"] == "importing"
    elsewhere.stall.set()
    assert server.wait_ready(name)["status"] == "ready"


def test_an_import_goes_on_after_a_crash(
    start_server: ServerFactory, elsewhere: Backend, name: str
) -> None:
    server = start_server("--allow-private-networks")
    elsewhere.stall = threading.Event()
    assert start_import(server, name, url=f"{elsewhere.url}/demo.git")[0] == 201
    server.kill()
    elsewhere.stall.set()
    server.start()
    assert server.wait_ready(name)["status"] == "ready"


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/x.git",
        "https://localhost/x.git",
        "https://[::1]/x.git",
        "https://[::ffff:127.0.0.1]/x.git",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/x.git",
        "https://0.0.0.0/x.git",
        "https://2130706433/x.git",
        "https://0x7f.1/x.git",
        "https://127\u30020\u30020\u30021/x.git",
        "https://[::7f00:1]/x.git",
        "https://[fec0::1]/x.git",
        "https://[64:ff9b::7f00:1]/x.git",
        "http://example.org/x.git",
        "file:///etc/passwd",
        "ext::sh -c id",
    ],
)
def test_addresses_of_the_private_network_are_refused(guarded_server: Server, url: str) -> None:
    status, body = start_import(guarded_server, "forged", url=url)
    assert (status, code_of(body)) == (400, 10104)


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("guarded")).start()
    yield server
    server.kill()
