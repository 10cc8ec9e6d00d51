"""The URL that git asks in place of the one that was given (``url.<base>.insteadOf``), and whether
the user allows it remotes of that kind (``protocol.allow``, git-config(1))."""

from __future__ import annotations

from artifactfs.errors import InvalidInput
from artifactfs.git.configuration.entries import Configuration, as_bool
from artifactfs.git.surroundings import variable
from artifactfs.git.wire.url import RemoteURL, parse_remote

_ALWAYS = ("http", "https", "git", "ssh")
"""Allowed where nothing is configured; the others, where a user asks for them."""


def rewritten(url: str, configuration: Configuration) -> str:
    """`url` with the longest prefix of ``insteadOf`` replaced; the first of equals wins."""
    best, base = "", ""
    for entry in configuration.section("url"):
        prefix = entry.value or ""
        if entry.variable == "insteadof" and url.startswith(prefix) and len(prefix) > len(best):
            best, base = prefix, entry.subsection or ""
    return base + url[len(best) :] if best else url


def effective_remote(url: str, configuration: Configuration) -> RemoteURL:
    """What is reached where a user names `url`. Raises: InvalidInput."""
    return parse_remote(rewritten(url, configuration))


def without_secret(url: str, configuration: Configuration) -> str:
    """What is kept of a remote: as it was given, so that git rewrites it, without credentials.

    Raises: InvalidInput for what is no remote and does not become one.
    """
    effective_remote(url, configuration)
    try:
        return parse_remote(url).url
    except InvalidInput:
        return url


def check_allowed(scheme: str, configuration: Configuration) -> None:
    """Raises: InvalidInput where git would refuse a remote of this kind."""
    if not _is_allowed(scheme, configuration):
        raise InvalidInput(
            f"git is configured not to use remotes of the kind {scheme}",
            hint=f"see protocol.{scheme}.allow in `git help config`, and $GIT_ALLOW_PROTOCOL",
        )


def _is_allowed(scheme: str, configuration: Configuration) -> bool:
    listed = variable("GIT_ALLOW_PROTOCOL")
    if listed is not None:
        return scheme in listed.split(":")
    policy = configuration.last(f"protocol.{scheme}.allow") or configuration.last("protocol.allow")
    if policy is None:
        policy = "always" if scheme in _ALWAYS else "user"
    if policy.lower() == "user":
        return as_bool(variable("GIT_PROTOCOL_FROM_USER") or "true") is not False
    return policy.lower() == "always"
