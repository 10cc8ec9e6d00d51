"""Remote URLs as git takes them (git-fetch(1), "GIT URLS"), with the credentials taken out.

What users paste is not always a valid URL: an Artifacts token has a ``?`` in it, so that
``https://x:art_v1_…?expires=1@host/ns/repo.git`` ends its authority too early for every standard
parser. So the authority is split off here by hand, and messages never repeat what was given.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal, TypeVar
from urllib.parse import quote, unquote

from artifactfs.errors import InvalidInput
from artifactfs.redact import remember_secret

Scheme = Literal["https", "http", "ssh", "file", "git"]

_Name = TypeVar("_Name", str, str | None)

DEFAULT_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%]+\]")
_ALMOST_URL = re.compile(r"(?i)(?:https?|ftps?|ssh|git\+ssh|ssh\+git|file):/|https?[:;/]")
_USERINFO_IN_PATH = re.compile(r"[^/]*@[^/]+[:/]|.*@[A-Za-z0-9.-]+:")
_USERINFO = re.compile(r"(?:^|/)[^/:@]*:[^/@]+@")
_SSH_SCHEMES = ("ssh", "git+ssh", "ssh+git")
_USE = "use https://host/path, ssh://user@host/path, user@host:path, file:///path or a path"


@dataclass(frozen=True, slots=True)
class RemoteURL:
    """Where a remote is.

    `url` is what git and the registry are given: for http(s) it has no userinfo; for ssh it keeps
    the login name, which is an address and not a secret. `host`, `port` and `path` are its parts
    (`host` without brackets, `port` None for the scheme's own, `path` decoded for ssh and file).
    `username` and `password` are decoded; None where not given.
    """

    scheme: Scheme
    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    host: str = ""
    port: int | None = None
    path: str = ""

    def __post_init__(self) -> None:
        remember_secret(self.password, self.username)
        if self.is_http and self.password is None:  # https://TOKEN@host
            remember_secret(self.username)

    @property
    def is_http(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def effective_port(self) -> int | None:
        return self.port or DEFAULT_PORTS.get(self.scheme)

    @property
    def origin(self) -> str:
        """``scheme://host[:port]``: what credentials belong to."""
        return f"{self.scheme}://{_bracketed(self.host)}{_port_suffix(self.port)}"


def _encoded(path: str, safe: str = "/") -> str:
    return quote(path, safe=safe, errors="surrogateescape")


def _decoded(path: str) -> str:
    """Raises: InvalidInput for what would be more than one argument, or line, of a request."""
    decoded = unquote(path, errors="surrogateescape")
    _check_control(decoded)
    return decoded


def _check_control(text: str) -> None:
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise InvalidInput("the remote contains a control character", hint=_USE)


def parse_remote(text: str) -> RemoteURL:
    """Parse what a user gave as a remote. A relative path is made absolute.

    Raises: InvalidInput.
    """
    if not text.strip():
        raise InvalidInput("the remote is empty", hint=_USE)
    _check_control(text)
    match = _SCHEME.fullmatch(text)
    if match is None:
        return _parse_scp_or_path(text)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme in ("http", "https"):
        return _parse_http("https" if scheme == "https" else "http", rest)
    if scheme in _SSH_SCHEMES:
        return _parse_ssh(rest)
    if scheme == "git":
        return _parse_git(rest)
    if scheme == "file":
        return _parse_file(rest)
    raise InvalidInput(f"remotes of the kind {scheme}:// are not supported", hint=_USE)


def _parse_http(scheme: Literal["http", "https"], rest: str) -> RemoteURL:
    userinfo, host, port, path = _split_authority(rest, scheme)
    if "?" in path or "#" in path:
        raise InvalidInput(
            "the path of the remote has a '?' or '#'",
            hint="percent-encode it, or remove the query",
        )
    username, password = _split_userinfo(userinfo)
    url = f"{scheme}://{_bracketed(host)}{_port_suffix(port)}{path.rstrip('/')}"
    return RemoteURL(scheme, url, username, password, host, port, path.rstrip("/"))


def _parse_ssh(rest: str) -> RemoteURL:
    userinfo, host, port, path = _split_authority(rest, "ssh")
    username, password = _split_userinfo(userinfo)
    path = _decoded(path)
    if len(path) < 2:
        raise InvalidInput("the remote names a host but no repository", hint=_USE)
    if path.startswith("/~"):
        path = path[1:]
    login = f"{_encoded(username, safe='')}@" if username else ""
    quoted = _encoded(path if path.startswith("/") else f"/{path}", safe="/~")
    url = f"ssh://{login}{_bracketed(host)}{_port_suffix(port)}{quoted}"
    return RemoteURL("ssh", url, _no_option(username), password, _no_option(host), port, path)


def _parse_git(rest: str) -> RemoteURL:
    userinfo, host, port, path = _split_authority(rest, "git")
    if userinfo is not None:
        raise InvalidInput("git:// has no credentials: remove the part before '@'")
    if len(path) < 2:
        raise InvalidInput("the remote names a host but no repository", hint=_USE)
    url = f"git://{_bracketed(host)}{_port_suffix(port)}{path}"
    path = _decoded(path)
    if path.startswith("/~"):
        path = path[1:]
    return RemoteURL("git", url, None, None, _no_option(host), port, path)


def _parse_file(rest: str) -> RemoteURL:
    if rest.startswith("localhost/"):
        rest = rest.removeprefix("localhost")
    if not rest.startswith("/"):
        raise InvalidInput("a file:// remote needs an absolute path: file:///srv/repo.git")
    path = _decoded(rest)
    return RemoteURL("file", f"file://{_encoded(path)}", path=path)


def _parse_scp_or_path(text: str) -> RemoteURL:
    """``[user@]host:path``, unless a slash comes before the colon or such a path exists."""
    _check_meant(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*::", text):
        raise InvalidInput("remote helpers (transport::address) are not supported", hint=_USE)
    bracket = re.match(r"(?:[^/@]+@)?\[[^\]/]+\]", text)
    colon = text.find(":", bracket.end() if bracket else 0)
    slash = text.find("/")
    if colon < 0 or (0 <= slash < colon and not bracket) or os.path.exists(text):
        path = os.path.abspath(os.path.expanduser(text))
        return RemoteURL("file", path, path=path)
    address, path = text[:colon], text[colon + 1 :]
    username, _, host = address.rpartition("@")
    # `[host:port]:path` is git's way to give a port with this syntax.
    host, port = _split_port(host[1:-1] if host.startswith("[") else host)
    if not path or not _HOST.fullmatch(_bracketed(host)):
        raise InvalidInput("this is not a remote that git understands", hint=_USE)
    login = _no_option(username) or None
    return RemoteURL("ssh", text, login, None, _no_option(host), port, _no_option(path))


def _check_meant(text: str) -> None:
    """Refuse what is a path or an address to git, and was meant to be a URL with a secret in it:
    it would be shown as an argument of ssh, and in messages. Raises: InvalidInput."""
    if _ALMOST_URL.match(text) and not os.path.exists(text):
        raise InvalidInput("the remote has a scheme without '://'", hint=_USE)
    address, colon, path = text.partition(":")
    is_scp = colon and "/" not in address and not os.path.exists(text)
    if is_scp and _USERINFO_IN_PATH.match(path):
        raise InvalidInput(
            "the remote looks like a URL without its scheme",
            hint="write https://user:password@host/path, or ssh://host/path if '@' is in the path",
        )
    if not is_scp and _USERINFO.search(text) and not os.path.exists(text):
        raise InvalidInput("the remote is not a URL, and there is no such path", hint=_USE)


def _split_authority(rest: str, scheme: str) -> tuple[str | None, str, int | None, str]:
    """``[userinfo@]host[:port][/path]`` as (userinfo, host, port, path)."""
    authority, slash, tail = rest.partition("/")
    userinfo, at, hostport = authority.rpartition("@")
    host, port = _split_port(hostport)
    if not _HOST.fullmatch(_bracketed(host)):
        hint = _USE
        if "@" in rest:
            hint = "percent-encode special characters of the user name and password ('/' is %2F)"
        raise InvalidInput(f"the {scheme} remote has no usable host name", hint=hint)
    return (userinfo if at else None), host, port, slash + tail


def _split_port(hostport: str) -> tuple[str, int | None]:
    """The host without brackets, and the port."""
    if hostport.startswith("["):
        host, bracket, port = hostport[1:].partition("]")
        port = port.removeprefix(":") if bracket else "?"
    elif hostport.count(":") > 1:
        return hostport, None
    else:
        host, _, port = hostport.partition(":")
    if not port:
        return host, None
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput(
            "the port of the remote is not a number from 1 to 65535",
            hint="percent-encode special characters of the user name and password",
        )
    return host, int(port)


def _split_userinfo(userinfo: str | None) -> tuple[str | None, str | None]:
    if userinfo is None:
        return None, None
    username, colon, password = userinfo.partition(":")
    return _decoded(username), _decoded(password) if colon else None


def _no_option(text: _Name) -> _Name:
    """What `ssh`, or the program it starts, would take for an option is an attack, not a name."""
    if text and text.startswith("-"):
        raise InvalidInput("a host, user name or path of a remote cannot start with '-'")
    return text


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _port_suffix(port: int | None) -> str:
    return f":{port}" if port else ""
