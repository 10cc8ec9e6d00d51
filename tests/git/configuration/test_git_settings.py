"""The table of git's settings: with each, we reach the server that git reaches, and only then.

Every test asks a real server that wants what is configured: git first, then ours. `why` says which
transport has to be chosen; an empty one is our own.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from artifactfs.errors import AuthenticationFailed, InvalidInput, RemoteError
from artifactfs.git.configuration.choice import OWN_KEYS
from artifactfs.git.remote.remote import Remote
from artifactfs.git.wire.credentials import CredentialFile
from tests.git.http_backend import Backend, http_backend
from tests.git.http_proxy import http_proxy
from tests.git.sample_repository import Sample
from tests.git.wire.test_transport_http import certificate, list_refs, read_pack, with_remote
from tests.git.wire.test_transport_process import git_daemon

__all__ = ["certificate"]  # a fixture

OUR_OWN = ""


@dataclass
class Git:
    """The user's git: a home with a configuration."""

    home: Path
    monkeypatch: pytest.MonkeyPatch
    fails_with: list[str] = field(default_factory=list)

    def config(self, text: str) -> None:
        (self.home / ".gitconfig").write_text(text)

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)

    def reaches(self, url: str) -> bool:
        done = subprocess.run(
            ["git", "ls-remote", url],
            env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
            capture_output=True,
            cwd="/",
        )
        return done.returncode == 0


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith(("GIT_SSL", "GIT_CONFIG_GLOBAL")):
            monkeypatch.delenv(name)
    return Git(home, monkeypatch)


def why(url: str, *, file: CredentialFile | None = None, blob: bytes | None = None) -> str | None:
    """Reach `url` and use it; returns why git does it for us, if it does."""

    async def body(remote: Remote) -> str | None:
        assert "refs/heads/main" in await list_refs(remote)
        if blob is not None:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read_pack, remote, blob)
            assert await remote.object_sizes([blob]) != {}
            assert await read_pack(remote, blob, urgent=True)
        return remote.capabilities.git_because or OUR_OWN

    return with_remote(url, body, file=file)


# -- what our own transport does -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "wants"),
    [
        ("[http]\n\textraHeader = X-Org: acme", {("x-org", "acme")}),
        (
            "[http]\n\textraHeader = X-Old: gone\n\textraHeader =\n\textraHeader = X-A: 1\n"
            "\textraHeader = X-B:2 \n",
            {("x-a", "1"), ("x-b", "2")},
        ),
        (
            '[http "URL/"]\n\textraHeader = Authorization: Basic eDp5',
            {("authorization", "Basic eDp5")},
        ),
        ("[http]\n\tuserAgent = agent/7", {("user-agent", "agent/7")}),
        ("[http]\n\tpostBuffer = 100000\n\tmaxRequests = 1\n\tminSessions = 2", set()),
        ("[credential]\n\tuseHttpPath = true\n[user]\n\tname = x", set()),
        ('[http "http://elsewhere.example/"]\n\tproxy = http://127.0.0.1:1', set()),
    ],
)
def test_what_our_own_transport_does_as_git_does(
    backend: Backend, git: Git, config: str, wants: set[tuple[str, str]], hosted: Sample
) -> None:
    url = f"{backend.url}/sample.git"
    backend.wants = wants
    assert git.reaches(url) == (not wants)
    git.config(config.replace("URL", backend.url))
    assert git.reaches(url)
    theirs = extra_names(backend)
    assert why(url, blob=hosted.blobs()["README.md"]) == OUR_OWN
    assert extra_names(backend) == theirs


def extra_names(backend: Backend) -> list[str]:
    """The names of the ``X-`` headers of the last request."""
    names = (name.lower() for name, _ in backend.seen[-1].headers)
    return sorted(name for name in names if name.startswith("x-"))


def test_user_agent_of_the_environment(backend: Backend, git: Git) -> None:
    git.set(GIT_HTTP_USER_AGENT="env/1")
    backend.wants = {("user-agent", "env/1")}
    assert git.reaches(f"{backend.url}/sample.git")
    assert why(f"{backend.url}/sample.git") == OUR_OWN


@pytest.mark.parametrize("way", ["sslCAInfo", "sslVerify", "for the URL", "GIT_SSL_NO_VERIFY"])
def test_certificates_of_servers(hosted: Sample, certificate: Path, git: Git, way: str) -> None:
    with http_backend(hosted.bare.parent, certificate) as backend:
        url = f"{backend.url}/sample.git"
        assert not git.reaches(url)
        with pytest.raises(RemoteError):
            why(url)
        if way == "sslCAInfo":
            (git.home / "ca.pem").write_bytes(certificate.read_bytes())
            git.config("[http]\n\tsslCAInfo = ~/ca.pem")
        elif way == "sslVerify":
            git.config("[http]\n\tsslVerify = off")
        elif way == "for the URL":
            git.config(f'[http "{backend.url}"]\n\tsslVerify = 0\n[http]\n\tsslVerify = true\n')
        else:
            git.set(GIT_SSL_NO_VERIFY="1")
        assert git.reaches(url)
        assert why(url, blob=hosted.blobs()["README.md"]) == OUR_OWN


def test_the_documentation_names_what_our_own_transport_does() -> None:
    table = Path(__file__).parents[3] / "docs" / "configuration.md"
    named = {word.lower() for word in re.findall(r"`(http\.[A-Za-z]+)`", table.read_text())}
    assert set(OWN_KEYS) <= named


# -- what git does for us ------------------------------------------------------------------------


@pytest.fixture
def client_certificate(tmp_path: Path) -> Path:
    """A folder with ``client.crt``, ``client.key`` and ``locked.key`` (password: sesame)."""
    folder = tmp_path / "client"
    folder.mkdir()
    for command in (
        (
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=client"),
            *("-keyout", "client.key", "-out", "client.crt"),
        ),
        ("rsa", "-aes256", "-in", "client.key", "-out", "locked.key", "-passout", "pass:sesame"),
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("way", ["config", "environment", "password"])
def test_client_certificates(
    hosted: Sample, certificate: Path, client_certificate: Path, git: Git, way: str
) -> None:
    cert, key = client_certificate / "client.crt", client_certificate / "client.key"
    with http_backend(hosted.bare.parent, certificate, clients=cert) as backend:
        url = f"{backend.url}/sample.git"
        base = f"[http]\n\tsslCAInfo = {certificate}\n"
        git.config(base)
        assert not git.reaches(url)
        with pytest.raises(RemoteError):
            why(url)
        expected = "http.sslcert is set"
        if way == "config":
            git.config(f"{base}\tsslCert = {cert}\n\tsslKey = {key}\n")
        elif way == "environment":
            git.set(GIT_SSL_CERT=str(cert), GIT_SSL_KEY=str(key))
            expected = "GIT_SSL_CERT is set"
        else:
            locked = client_certificate / "locked.key"
            helper = "!f() { echo password=sesame; }; f"
            git.config(
                f"{base}\tsslCert = {cert}\n\tsslKey = {locked}\n"
                f'\tsslCertPasswordProtected = true\n[credential]\n\thelper = "{helper}"\n'
            )
        assert git.reaches(url)
        assert why(url, blob=hosted.blobs()["README.md"]) == expected


def test_a_folder_of_authorities(hosted: Sample, certificate: Path, git: Git) -> None:
    folder = git.home / "authorities"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(certificate.read_bytes())
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
    with http_backend(hosted.bare.parent, certificate) as backend:
        git.config(f"[http]\n\tsslCAPath = {folder}\n")
        assert git.reaches(f"{backend.url}/sample.git")
        assert why(f"{backend.url}/sample.git") == "http.sslcapath is set"


def test_cookies(backend: Backend, git: Git, hosted: Sample) -> None:
    cookies = git.home / "cookies"
    cookies.write_text("127.0.0.1\tFALSE\t/\tFALSE\t0\to\tgit-secret\n")
    git.config(f"[http]\n\tcookieFile = {cookies}\n")
    backend.wants = {("cookie", "o=git-secret")}
    assert git.reaches(f"{backend.url}/sample.git")
    blob = hosted.blobs()["README.md"]
    assert why(f"{backend.url}/sample.git", blob=blob) == "http.cookiefile is set"


def test_headers_of_several_urls(backend: Backend, git: Git) -> None:
    git.config(
        f'[http]\n\textraHeader = X-Org: acme\n[http "{backend.url}/"]\n\textraHeader = X-A: 1\n'
    )
    backend.wants = {("x-org", "acme"), ("x-a", "1")}
    assert git.reaches(f"{backend.url}/sample.git")
    assert "several URLs" in (why(f"{backend.url}/sample.git") or "")


@pytest.mark.parametrize("known", [True, False])
def test_netrc(backend: Backend, git: Git, known: bool) -> None:
    host = "127.0.0.1" if known else "elsewhere.example"
    (git.home / ".netrc").write_text(f"machine {host} login u password p@ss\n")
    backend.accept = {"u:p@ss"} if known else None
    assert git.reaches(f"{backend.url}/sample.git")
    expected = "~/.netrc knows 127.0.0.1" if known else OUR_OWN
    assert why(f"{backend.url}/sample.git") == expected


@pytest.mark.parametrize("way", ["http.proxy", "http_proxy", "remote.origin.proxy", "helper"])
def test_http_proxies_with_a_password(backend: Backend, git: Git, hosted: Sample, way: str) -> None:
    url = f"{backend.url}/sample.git"
    with http_proxy("me:pa%ss") as proxy:
        address = f"http://me:pa%25ss@127.0.0.1:{proxy.port}"
        if way == "http_proxy":
            git.set(http_proxy=address)
        elif way == "helper":
            script = "!f() { echo username=me; echo password=pa%ss; }; f"
            plain = f"http://me@127.0.0.1:{proxy.port}"
            git.config(f'[http]\n\tproxy = {plain}\n[credential]\n\thelper = "{script}"\n')
        else:
            section = "http" if way == "http.proxy" else 'remote "origin"'
            git.config(f"[{section}]\n\tproxy = {address}\n")
        expected = f"{'http.proxy' if way == 'helper' else way} is set"
        assert why(url, blob=hosted.blobs()["README.md"]) == expected
        assert proxy.asked
        proxy.asked.clear()
        if way != "remote.origin.proxy":
            git.set(no_proxy="127.0.0.1")
            assert git.reaches(url) and why(url) == expected
            assert not proxy.asked
        proxy.accept = "somebody:else"
        git.set(no_proxy="")
        with pytest.raises(RemoteError) as failed:
            why(url)
        assert "pa%" not in str(failed.value)


def test_a_proxy_for_https(hosted: Sample, certificate: Path, git: Git) -> None:
    with http_backend(hosted.bare.parent, certificate) as backend, http_proxy() as proxy:
        git.set(https_proxy=f"127.0.0.1:{proxy.port}", GIT_SSL_NO_VERIFY="1")
        assert why(f"{backend.url}/sample.git") == "https_proxy is set"
        assert proxy.asked == [f"CONNECT 127.0.0.1:{backend.port} HTTP/1.1"]


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "socks5h", "https"])
def test_proxies_of_other_kinds_are_asked(backend: Backend, git: Git, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        port = listener.getsockname()[1]
        git.config(f"[http]\n\tproxy = {scheme}://user:secret@127.0.0.1:{port}\n")
        heard: list[bytes] = []

        def listen() -> None:
            try:
                with listener.accept()[0] as connection:
                    heard.append(connection.recv(100))
            except OSError:
                return

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(RemoteError) as failed:
            why(f"{backend.url}/sample.git")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "secret" not in f"{failed.value} {failed.value.hint}"
    assert heard
    assert not backend.seen


def test_another_kind_of_authentication(backend: Backend, git: Git) -> None:
    backend.accept = set()
    backend.challenge = 'Digest realm="x", nonce="n", qop="auth"'
    with pytest.raises(AuthenticationFailed):
        why(backend.url.replace("://", "://user:password@") + "/sample.git")
    assert any((seen.authorization or "").startswith("Digest ") for seen in backend.seen)


# -- credentials ---------------------------------------------------------------------------------


FOR_GIT = "[http]\n\tcookieFile = /nonexistent\n"


@pytest.mark.parametrize("settings", ["", FOR_GIT], ids=["own", "git"])
def test_helpers_are_called_as_git_calls_them(backend: Backend, git: Git, settings: str) -> None:
    log, script = git.home / "log", git.home / "helper"
    script.write_text(
        f'#!/bin/sh\necho "== $1" >> {log}\nsed s/^/$1:/ >> {log}\n'
        "if [ $1 = get ]; then echo username=u; cat ~/password; fi\n"
    )
    script.chmod(0o755)
    git.config(f"{settings}[credential]\n\thelper = {script}\n\tuseHttpPath = true\n")
    url, backend.accept = f"{backend.url}/sample.git", {"u:good"}
    for password in ("bad", "good"):
        (git.home / "password").write_text(f"password={password}\n")
        asked = []
        for ask in (git.reaches, reaches):
            log.write_text("")
            assert ask(url) == (password == "good")
            lines = [line for line in log.read_text().split("\n") if "wwwauth" not in line]
            asked.append([line for line in lines if "capability" not in line])
        theirs, ours = (set(lines) for lines in asked)
        assert "get:path=sample.git" in ours
        assert ours == theirs
        assert ("== store" in ours) == (password == "good")
        assert ("== erase" in ours) == (password == "bad")


def reaches(url: str) -> bool:
    try:
        why(url)
    except AuthenticationFailed:
        return False
    return True


@pytest.mark.parametrize("way", ["url", "username", "file", "stale file", "askpass", "GIT_ASKPASS"])
def test_credentials_reach_git_and_no_command_line(
    backend: Backend, git: Git, tmp_path: Path, way: str, hosted: Sample
) -> None:
    backend.accept = {"u:geheim/%1"}
    url, file = f"{backend.url}/sample.git", CredentialFile(tmp_path / "credentials")
    settings = FOR_GIT
    helper = f'[credential]\n\thelper = "!f() {{ cat {git.home}/answer; }}; f"\n'
    (git.home / "answer").write_text("username=u\npassword=geheim/%1\n")
    if way == "url":
        url = url.replace("://", "://u:geheim%2F%251@")
    elif way == "username":
        (git.home / "answer").write_text("password=geheim/%1\n")
        url, settings = url.replace("://", "://u@"), settings + helper
    elif way == "file":
        file.set(url, "u", "geheim/%1")
    elif way == "stale file":
        file.set(url, "u", "alt")
        settings += helper
    else:
        script = git.home / "ask"
        script.write_text('#!/bin/sh\ncase "$1" in User*) echo u;; *) echo geheim/%1;; esac\n')
        script.chmod(0o755)
        if way == "askpass":
            settings += f"[core]\n\taskPass = {script}\n"
        else:
            git.set(GIT_ASKPASS=str(script))
    git.config(settings)
    commands: list[str] = []
    stop = watch_commands(commands)
    assert why(url, file=file, blob=hosted.blobs()["README.md"]) == "http.cookiefile is set"
    stop()
    assert any("remote-http" in command for command in commands)
    assert not [command for command in commands if "geheim" in command]
    if file.path.exists():
        assert file.get(url) is not None


def watch_commands(found: list[str]) -> Callable[[], None]:
    """Collect the command lines of this process's descendants; call what is returned to end."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if command.startswith(("git ", "/usr/lib/git-core", "/bin/sh", "sh ")):
                    found.append(command)

    thread = threading.Thread(target=look)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop


def test_old_and_static_servers_are_mirrored_by_git(backend: Backend, git: Git) -> None:
    git.config(FOR_GIT)
    backend.version_2 = False
    url = f"{backend.url}/sample.git"

    async def body(remote: Remote) -> tuple[object, set[str]]:
        return remote.capabilities.protocol, await list_refs(remote)

    protocol, refs = with_remote(url, body)
    assert protocol == 0
    assert "refs/heads/main" in refs


# -- ssh and git:// ------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, git: Git) -> Path:
    """A folder of programs that stand for ssh: each logs its name and arguments, and runs the
    command here. ``silent`` ones do not know ``-G``."""
    folder = tmp_path / "programs"
    folder.mkdir()
    log = folder / "log"
    for name in ("ssh", "wrapper", "silent", "plink", "TortoisePlink.exe"):
        knows = "exit 1" if name != "wrapper" else "exit 0"
        script = folder / name
        script.write_text(
            f'#!/bin/sh\nfor one; do [ "$one" = -G ] && {knows}; done\n'
            f'printf "%s\\n" "{name} $*" >> {log}\n'
            'while [ $# -gt 2 ]; do shift; done\nexec sh -c "$2"\n'
        )
        script.chmod(0o755)
    git.set(PATH=f"{folder}:{os.environ['PATH']}")
    for name in ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT"):
        git.monkeypatch.delenv(name, raising=False)
    return log


OURS = ("BatchMode", "ConnectTimeout", "ServerAliveInterval", "ServerAliveCountMax")


def without_ours(line: str) -> str:
    """A logged call without the options that keep OpenSSH from asking and from waiting."""
    words = line.split(" ")
    for place in range(len(words) - 2, -1, -1):
        if words[place] == "-o" and words[place + 1].startswith(OURS):
            del words[place : place + 2]
    return " ".join(words)


@pytest.mark.parametrize(
    ("config", "variables"),
    [
        ("", {}),
        ("[core]\n\tsshCommand = ssh -i key", {}),
        ("[core]\n\tsshCommand = nonsense", {"GIT_SSH_COMMAND": "wrapper -x 'a b'"}),
        ("[core]\n\tsshCommand = silent", {}),
        ("[core]\n\tsshCommand = silent\n[ssh]\n\tvariant = plink", {}),
        ("[core]\n\tsshCommand = silent\n[ssh]\n\tvariant = nonsense", {}),
        ("[ssh]\n\tvariant = simple", {"GIT_SSH_VARIANT": "putty", "GIT_SSH": "silent"}),
        ("", {"GIT_SSH": "wrapper"}),
        ("", {"GIT_SSH": "plink"}),
        ("", {"GIT_SSH": "TortoisePlink.exe"}),
        ('[remote "origin"]\n\tuploadpack = env A=1 git-upload-pack', {}),
    ],
)
@pytest.mark.parametrize("port", ["", ":2200"])
def test_ssh_is_called_as_git_calls_it(
    hosted: Sample,
    git: Git,
    programs: Path,
    config: str,
    variables: dict[str, str],
    port: str,
    tmp_path: Path,
) -> None:
    url = f"ssh://u@example.org{port}{hosted.bare}"
    git.config(f'{config}\n[remote "origin"]\n\turl = {url}\n')
    git.set(**variables)
    reached = git.reaches("origin")
    theirs = programs.read_text().splitlines() if programs.exists() else []
    programs.write_text("")
    try:
        assert why(url) == OUR_OWN
    except RemoteError:
        assert not reached
    except InvalidInput as refused:
        assert not reached and "port" in refused.message
    ours = programs.read_text().splitlines()
    assert [without_ours(line) for line in ours[:1]] == theirs[:1]


@pytest.mark.parametrize("way", ["core.gitProxy", "GIT_PROXY_COMMAND", "none", "another host"])
def test_git_proxies(hosted: Sample, git: Git, tmp_path: Path, way: str) -> None:
    log, script = tmp_path / "log", tmp_path / "proxy"
    script.write_text(
        "#!/usr/bin/env python3\nimport os, sys\n"
        f'open("{log}", "a").write(" ".join(sys.argv[1:]))\n'
        "os.execvp('python3', ['python3', '-c', '''\n"
        "import socket, sys, threading, os\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while (d := os.read(0, 65536)): s.sendall(d)\n"
        "    s.shutdown(1)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while (d := s.recv(65536)): os.write(1, d)\n"
        "''', *sys.argv[1:]])\n"
    )
    script.chmod(0o755)
    with git_daemon(hosted.bare.parent) as url:
        host = url.removeprefix("git://")
        if way == "GIT_PROXY_COMMAND":
            git.set(GIT_PROXY_COMMAND=str(script))
        else:
            git.config(
                "[core]\n"
                + {
                    "core.gitProxy": f"\tgitProxy = no for example.org\n\tgitProxy = {script}",
                    "none": f"\tgitProxy = none for {host}\n\tgitProxy = {script}",
                    "another host": f"\tgitProxy = {script} for 1.{host}",
                }[way]
            )
        assert git.reaches(f"{url}/sample.git")
        theirs = log.read_text() if log.exists() else ""
        log.write_text("")
        assert why(f"{url}/sample.git", blob=hosted.blobs()["README.md"]) == OUR_OWN
        assert (host.replace(":", " ") in log.read_text()) == bool(theirs)
        assert bool(theirs) == (way in ("core.gitProxy", "GIT_PROXY_COMMAND"))


@pytest.mark.parametrize("way", ["longest", "chain of secrets", "to another scheme"])
def test_urls_are_rewritten(backend: Backend, git: Git, hosted: Sample, way: str) -> None:
    if way == "longest":
        git.config(
            f'[url "http://127.0.0.1:1/"]\n\tinsteadOf = gh:\n'
            f'[url "{backend.url}/"]\n\tinsteadOf = gh:org/\n\tinsteadOf = other:\n'
        )
        given = "gh:org/sample.git"
    elif way == "chain of secrets":
        backend.accept = {"u:geheim"}
        git.config(
            f'[url "{backend.url.replace("://", "://u:geheim@")}/"]\n\tinsteadOf = {backend.url}/\n'
        )
        given = f"{backend.url}/sample.git"
    else:
        git.config(f'[url "{hosted.bare.parent}/"]\n\tinsteadOf = https://example.org/\n')
        given = "https://example.org/sample.git"
    assert git.reaches(given)
    assert why(given) == OUR_OWN


@pytest.mark.parametrize(
    ("config", "variables"),
    [
        ("", {}),
        ("[protocol]\n\tallow = never", {}),
        ('[protocol]\n\tallow = never\n[protocol "KIND"]\n\tallow = always', {}),
        ('[protocol "KIND"]\n\tallow = never', {}),
        ('[protocol "KIND"]\n\tallow = user', {}),
        ('[protocol "KIND"]\n\tallow = user', {"GIT_PROTOCOL_FROM_USER": "0"}),
        ("[protocol]\n\tallow = never", {"GIT_ALLOW_PROTOCOL": "ssh:KIND"}),
        ("", {"GIT_ALLOW_PROTOCOL": "ssh"}),
    ],
)
@pytest.mark.parametrize("kind", ["http", "file"])
def test_kinds_that_git_may_not_use(
    backend: Backend,
    hosted: Sample,
    git: Git,
    config: str,
    variables: dict[str, str],
    kind: str,
) -> None:
    url = f"{backend.url}/sample.git" if kind == "http" else str(hosted.bare)
    git.config(config.replace("KIND", kind))
    git.set(**{name: value.replace("KIND", kind) for name, value in variables.items()})
    try:
        ours = why(url) == OUR_OWN
    except InvalidInput:
        ours = False
    assert ours == git.reaches(url)
