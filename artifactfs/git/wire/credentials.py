"""Credentials of http(s) remotes: a 0600 file in git-credential-store(1) format, then helpers.

The file has one line for an origin, ``https://user:password@host``, each part percent-encoded, so
that git's own ``store`` helper reads it. Nothing here writes a secret anywhere else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from artifactfs.errors import InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.wire.url import RemoteURL, parse_remote

_HELPER_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and its password or token."""

    username: str
    password: str = field(repr=False)


class CredentialFile:
    """The credentials of one repository. Every change replaces the file as a whole.

    It is read again at each look-up, so that another process can put a fresh token in place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, url: str) -> Credential | None:
        """What is stored for the origin of `url`. Raises: OSError other than a missing file."""
        origin = parse_remote(url).origin
        for line in self._lines():
            entry = _parse_line(line)
            if entry is not None and entry.origin == origin:
                return Credential(entry.username or "", entry.password or "")
        return None

    def set(self, url: str, username: str, password: str) -> None:
        """Store credentials for the origin of `url` in place of what is there."""
        remote = parse_remote(url)
        if not remote.is_http:
            raise InvalidInput("only http and https remotes have stored credentials")
        scheme, _, rest = remote.origin.partition("://")
        userinfo = ":".join(
            quote(part, safe="", errors="surrogateescape") for part in (username, password)
        )
        self._write([*self._lines_without(remote.origin), f"{scheme}://{userinfo}@{rest}"])

    def remove(self, url: str) -> None:
        """Forget what is stored for the origin of `url`."""
        lines = list(self._lines())
        kept = self._lines_without(parse_remote(url).origin)
        if len(kept) != len(lines):
            self._write(kept)

    def _lines(self) -> Iterable[str]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return []
        return [line for line in text.splitlines() if line.strip()]

    def _lines_without(self, origin: str) -> list[str]:
        kept = []
        for line in self._lines():
            entry = _parse_line(line)
            if entry is None or entry.origin != origin:
                kept.append(line)
        return kept

    def _write(self, lines: Iterable[str]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _parse_line(line: str) -> RemoteURL | None:
    """An entry, or None: git too ignores lines that are not URLs."""
    try:
        entry = parse_remote(line)
    except InvalidInput:
        return None
    return entry if entry.is_http else None


async def credential_for(
    url: str,
    file: CredentialFile | None,
    *,
    rejected: Credential | None = None,
    username: str | None = None,
) -> Credential | None:
    """The credentials for `url`: from `file`, else from ``git credential fill``.

    `rejected` is what the remote refused just now: only another answer is worth a try. Waits for
    the helpers of the user's git configuration, at most 10 s, and never prompts.
    """
    stored = file.get(url) if file else None
    if stored is not None and stored != rejected:
        return stored
    if stored is not None:
        username = stored.username or username
    filled = await _fill(parse_remote(url), username)
    return filled if filled != rejected else None


async def _fill(remote: RemoteURL, username: str | None) -> Credential | None:
    """git-credential(1) ``fill``; None where no helper knows, or fails."""
    host = remote.origin.partition("://")[2]
    request = f"protocol={remote.scheme}\nhost={host}\npath={remote.path.lstrip('/')}\n"
    if username:
        request += f"username={username}\n"
    # An empty GIT_ASKPASS keeps git from asking on a desktop; a script the user set may answer.
    environment = {"GIT_ASKPASS": os.environ.get("GIT_ASKPASS", "")}
    try:
        output = await run_git(
            "credential",
            "fill",
            stdin=f"{request}\n".encode("utf-8", "surrogateescape"),
            deadline_s=_HELPER_DEADLINE_S,
            env=environment,
        )
    except GitFailed:
        return None
    answer = dict(
        line.split("=", 1)
        for line in output.decode("utf-8", "surrogateescape").split("\n")
        if "=" in line
    )
    if "password" not in answer:
        return None
    return Credential(answer.get("username", ""), answer["password"])
