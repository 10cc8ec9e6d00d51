"""A remote as a user gives it: where the credentials in it, or beside it, go."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from artifactfs.errors import InvalidInput
from artifactfs.git.configuration.capture import (
    capture,
    configuration_here,
    helper_knows,
    login_key,
)
from artifactfs.git.configuration.rewriting import effective_remote, rewritten, without_secret
from artifactfs.git.surroundings import Surroundings, encoded
from artifactfs.git.wire.url import RemoteURL, parse_remote

REMOTE_VARIABLE = "ARTIFACTS_GIT_REMOTE"
REMOTE_VARIABLES = (REMOTE_VARIABLE, "ARTIFACTS_REMOTE")
"""The remote where a command is given none."""
_TOKEN, _TOKEN_ALIAS = "ARTIFACTS_TOKEN", "ARTIFACT_FS_TOKEN"
TOKEN_VARIABLES = (_TOKEN, _TOKEN_ALIAS, "ARTIFACTS_API_TOKEN", "ARTIFACT_TOKEN")
"""What holds a token of ours: no program that we start needs it."""


@dataclass(frozen=True, slots=True)
class RemoteArgument:
    """A remote as git rewrites it, without credentials; and what is to be kept as one: the
    credentials and what the environment says to git (`daemon.repositories.registration.Secret`).
    """

    url: str
    secret: dict[str, Any] = field(repr=False)


def without_tokens(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for another program: without our tokens."""
    return {key: value for key, value in environment.items() if key not in TOKEN_VARIABLES}


def read_remote(given: str, *, token: str | None = None) -> RemoteArgument:
    """Take the credentials out of `given`; ``-`` reads the URL from standard input.

    Where the URL has no password, it is `token`, else ``$ARTIFACTS_TOKEN``. Raises: InvalidInput.
    """
    if given == "-":
        given = sys.stdin.readline().strip() if sys.stdin is not None else ""
    surroundings, configuration = capture(), configuration_here()
    url = without_secret(given, configuration)
    remote = effective_remote(given, configuration)
    password = remote.password
    username = remote.username
    if rewritten(given, configuration) != given:
        password = username = None  # what is in the configuration stays there
    if password is None and remote.is_http:
        token = token or _token_for(remote)
        if token:
            password = token
        elif username and helper_knows(remote):
            login = Surroundings({}, ((login_key(remote), username),))
            surroundings = login.over(surroundings)
        elif username:  # https://TOKEN@host: a token alone stands in the user's place
            username, password = "x", username
    if password is not None and not remote.is_http:
        raise InvalidInput(
            "only http and https remotes take a password in the URL",
            hint="use an ssh key or agent for ssh remotes",
        )
    secret = {
        "username": username or "x",
        "password": password,
        "url": remote.url,
        "surroundings": encoded(surroundings),
    }
    return RemoteArgument(url, secret)


def remote_of_environment() -> str | None:
    """``$ARTIFACTS_GIT_REMOTE``, or its alias."""
    return next((os.environ[name] for name in REMOTE_VARIABLES if os.environ.get(name)), None)


def _token_for(remote: RemoteURL) -> str | None:
    """``$ARTIFACTS_TOKEN``: where the environment names a remote, only for that one's server.

    ``$ARTIFACT_FS_TOKEN`` was given for this command, whatever its remote.
    """
    if given := os.environ.get(_TOKEN_ALIAS):
        return given
    named = remote_of_environment()
    if named is not None and parse_remote(named).origin != remote.origin:
        return None
    return os.environ.get(_TOKEN) or None
