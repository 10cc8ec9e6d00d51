"""Which transport reaches an http(s) remote: our own, or git's.

Ours does what the keys of `OWN_KEYS` say exactly as git does; the tests hold both against one
server. Any other key that is set for a remote, any proxy, and any of git's variables that is not
listed here makes git itself ask (`artifactfs.git.streams.remote_https`).
"""

from __future__ import annotations

import netrc
import os
import re
from pathlib import Path

from artifactfs.git.configuration.entries import Configuration, as_bool, as_path
from artifactfs.git.configuration.listing import http_settings, read_configuration
from artifactfs.git.surroundings import variable
from artifactfs.git.wire.transport import HttpSettings, NeedsGit
from artifactfs.git.wire.url import RemoteURL

OWN_KEYS = {
    "http.extraheader": "sent with every request; an empty value forgets those before it",
    "http.useragent": "sent with every request",
    "http.sslverify": "whether certificates are checked",
    "http.sslcainfo": "the file of trusted authorities",
    "http.postbuffer": "no effect: requests are sent with their length, whatever it is",
    "http.maxrequests": "no effect: it is for static servers, which git fetches from",
    "http.minsessions": "no effect: it is for static servers, which git fetches from",
}
"""What our own transport makes of a key. Credentials are git-credential(1)'s, so every key of
``credential.*`` is followed."""

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*[^ \t]")
_HEADERS_OF_GIT = frozenset(
    (
        "accept",
        "accept-encoding",
        "accept-language",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "git-protocol",
        "host",
        "pragma",
        "transfer-encoding",
        "user-agent",
    )
)
"""What an extra header cannot be for our own transport: curl replaces or leaves out some."""

_REMOTE_KEYS = ("proxy", "proxyauthmethod", "vcs")
_VARIABLES = (
    "GIT_SSL_CERT",
    "GIT_SSL_CERT_TYPE",
    "GIT_SSL_KEY",
    "GIT_SSL_KEY_TYPE",
    "GIT_SSL_CERT_PASSWORD_PROTECTED",
    "GIT_SSL_CAPATH",
    "GIT_SSL_VERSION",
    "GIT_SSL_CIPHER_LIST",
    "GIT_PROXY_SSL_CERT",
    "GIT_PROXY_SSL_KEY",
    "GIT_PROXY_SSL_CERT_PASSWORD_PROTECTED",
    "GIT_PROXY_SSL_CAINFO",
    "GIT_HTTP_PROXY_AUTHMETHOD",
    "GIT_HTTP_LOW_SPEED_LIMIT",
    "GIT_HTTP_LOW_SPEED_TIME",
)
_PROXIES = {
    "http": ("http_proxy", "all_proxy", "ALL_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
}

Http = dict[str, str | None]
"""The ``http.*`` settings of one URL."""


def reason_for_git(
    url: RemoteURL, remote: str, configuration: Configuration, http: Http
) -> str | None:
    """Why git has to reach `url`, in a few words; None where our own transport may.

    `remote` is the name of the remote, `http` is what `http_settings` says of the URL.
    """
    for key, value in http.items():
        if key not in OWN_KEYS or not _is_understood(key, value):
            return f"{key} is set"
    headers = extra_headers(configuration, http)
    if headers is None:
        return "http.extraheader is set for several URLs"
    if not all(map(_is_plain, headers)):
        return "http.extraheader is set to a header that git itself sends"
    for variable_name in _REMOTE_KEYS:
        key = f"remote.{remote}.{variable_name}"
        if configuration.last(key) is not None:
            return f"{key} is set"
    for name in _VARIABLES:
        if variable(name) is not None:
            return f"{name} is set"
    for name in _PROXIES[url.scheme]:
        if variable(name):
            return f"{name} is set"
    return _reason_of_netrc(url.host)


def settings_of(configuration: Configuration, http: Http) -> HttpSettings:
    """The settings of a URL for which `reason_for_git` has no reason."""
    pairs = (line.partition(":") for line in extra_headers(configuration, http) or ())
    file = variable("GIT_SSL_CAINFO") or as_path(http.get("http.sslcainfo") or "")
    verify = as_bool(http["http.sslverify"]) if "http.sslverify" in http else True
    return HttpSettings(
        tuple((name.strip(), value.strip()) for name, _, value in pairs),
        variable("GIT_HTTP_USER_AGENT") or http.get("http.useragent") or None,
        bool(verify) and variable("GIT_SSL_NO_VERIFY") is None,
        file or None,
    )


async def own_settings(
    url: RemoteURL, remote: str, gitdir: Path | None, configuration: Configuration | None = None
) -> HttpSettings:
    """What is configured for `url`. Takes git processes, fewer where `configuration` is known.

    Raises: NeedsGit where our transport does not do all of it, InvalidInput.
    """
    if configuration is None:
        configuration = await read_configuration(gitdir)
    http = await _http(url, gitdir, configuration)
    if why := reason_for_git(url, remote, configuration, http):
        raise NeedsGit(why)
    return settings_of(configuration, http)


async def _http(url: RemoteURL, gitdir: Path | None, configuration: Configuration) -> Http:
    """Takes a process where there are settings for some URLs."""
    if any(entry.subsection is not None for entry in configuration.section("http")):
        return await http_settings(url.url, gitdir)
    return {entry.key: entry.value for entry in configuration.section("http")}


def _is_understood(key: str, value: str | None) -> bool:
    if key == "http.sslverify":
        return as_bool(value) is not None
    return key != "http.sslcainfo" or (value is not None and as_path(value) is not None)


def extra_headers(configuration: Configuration, http: Http) -> tuple[str, ...] | None:
    """The lines of ``http.extraHeader``; None where only git can tell which of them count.

    Of several URLs that match, the better ones may replace or follow the others, by their order.
    """
    if "http.extraheader" not in http:
        return ()
    entries = [one for one in configuration.section("http") if one.variable == "extraheader"]
    if len({one.subsection for one in entries}) > 1:
        return None
    values = [one.value or "" for one in entries]
    last_reset = max((place for place, value in enumerate(values) if not value), default=-1)
    return tuple(values[last_reset + 1 :])


def _is_plain(line: str) -> bool:
    match = _HEADER.match(line)
    return match is not None and match[1].lower() not in _HEADERS_OF_GIT and line.isascii()


def _reason_of_netrc(host: str) -> str | None:
    """curl takes credentials out of ``~/.netrc``."""
    home = variable("HOME")
    path = Path(home, ".netrc") if home else None
    if path is None or not os.access(path, os.R_OK):
        return None
    try:
        known = netrc.netrc(path).authenticators(host)
    except (netrc.NetrcParseError, OSError, ValueError):
        return "~/.netrc is there"
    return f"~/.netrc knows {host}" if known is not None else None
