"""``--remote``: where the credentials in it, or beside it, go."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from artifactfs.errors import InvalidInput
from artifactfs.git.wire.url import parse_remote

TOKEN_VARIABLE = "ARTIFACT_FS_TOKEN"


@dataclass(frozen=True, slots=True)
class RemoteArgument:
    """A remote without credentials, and the credentials."""

    url: str
    secret: dict[str, str] | None = field(repr=False)


def read_remote(given: str) -> RemoteArgument:
    """Take the credentials out of `given`; ``-`` reads the URL from standard input.

    ``$ARTIFACT_FS_TOKEN`` is the password where the URL has none. Raises: InvalidInput.
    """
    if given == "-":
        given = sys.stdin.readline().strip() if sys.stdin is not None else ""
    remote = parse_remote(given)
    password = remote.password
    username = remote.username
    if password is None and remote.is_http:
        token = os.environ.get(TOKEN_VARIABLE)
        if token:
            password = token
        elif username:  # https://TOKEN@host: a token alone stands in the user's place
            username, password = "x", username
    if password is not None and not remote.is_http:
        raise InvalidInput(
            "only http and https remotes take a password in the URL",
            hint="use an ssh key or agent for ssh remotes",
        )
    secret = None
    if password is not None:
        secret = {"username": username or "x", "password": password}
    return RemoteArgument(remote.url, secret)
