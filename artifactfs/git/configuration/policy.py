"""Which kinds of remotes the user allows git (``protocol.allow``, git-config(1))."""

from __future__ import annotations

from artifactfs.errors import InvalidInput
from artifactfs.git.configuration.entries import Configuration, as_bool
from artifactfs.git.surroundings import variable

_ALWAYS = ("http", "https", "git", "ssh")
"""Allowed where nothing is configured; the others, where a user asks for them."""


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
