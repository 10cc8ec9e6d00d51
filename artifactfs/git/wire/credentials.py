"""Credentials of http(s) remotes: a 0600 file in git-credential-store(1) format, then helpers.

The file has one line for an origin, ``https://user:password@host``, each part percent-encoded, so
that git's own ``store`` helper reads it. Nothing here writes a secret anywhere else.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from artifactfs.errors import InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.wire.url import RemoteURL, parse_remote
from artifactfs.redact import remember_secret
from artifactfs.system.files import replace_file

_HELPER_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and its password or token.

    `told` is all that a helper said with them, for it to be told whether they were any good.
    """

    username: str
    password: str = field(repr=False)
    told: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        remember_secret(self.password, self.username)


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
        text = "".join(f"{line}\n" for line in lines)
        replace_file(self.path, text, mode=0o600, sync=True)


def credential_helper(credentials: Path) -> str:
    """A value of credential.helper that only reads `credentials`."""
    store = f"git credential-store --file {shlex.quote(str(credentials))} get"
    return f'!f() {{ test "$1" != get || {store}; }}; f'


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
    gitdir: Path | None = None,
    challenges: Sequence[str] = (),
) -> Credential | None:
    """The credentials for `url`: from `file`, else from ``git credential fill``.

    `rejected` is what the remote refused just now: only another answer is worth a try. Waits for
    the helpers of the configuration (the user's, and that of `gitdir`), at most 10 s, and never
    prompts at a terminal. `challenges` are the ``WWW-Authenticate`` headers of the refusal.
    """
    stored = file.get(url) if file else None
    if stored is not None and stored != rejected:
        return stored
    if stored is not None:
        username = stored.username or username
    filled = await _fill(parse_remote(url), username, gitdir, challenges)
    return filled if filled != rejected else None


async def _fill(
    remote: RemoteURL, username: str | None, gitdir: Path | None, challenges: Sequence[str]
) -> Credential | None:
    """git-credential(1) ``fill``; None where no helper knows, or fails."""
    lines = _described(remote) + [("wwwauth[]", challenge) for challenge in challenges]
    if username:
        lines.append(("username", username))
    output = await _git_credential("fill", lines, gitdir)
    told = [
        (key, value)
        for key, equals, value in (
            line.partition("=") for line in output.decode("utf-8", "surrogateescape").split("\n")
        )
        if equals
    ]
    answer = dict(told)
    if "password" not in answer:
        return None
    return Credential(answer.get("username", ""), answer["password"], tuple(told))


async def approve_credential(credential: Credential, gitdir: Path | None = None) -> None:
    """Tell the helpers that what one of them gave was good (their ``store``)."""
    await _git_credential("approve", credential.told, gitdir)


async def reject_credential(credential: Credential, gitdir: Path | None = None) -> None:
    """Tell the helpers that what one of them gave was refused (their ``erase``)."""
    if credential.told:
        await _git_credential("reject", credential.told, gitdir)


def _described(remote: RemoteURL) -> list[tuple[str, str]]:
    """The path goes along: git leaves it out for helpers unless ``useHttpPath`` is set."""
    host = remote.origin.partition("://")[2]
    return [("protocol", remote.scheme), ("host", host), ("path", remote.path.lstrip("/"))]


async def _git_credential(
    operation: str, lines: Iterable[tuple[str, str]], gitdir: Path | None
) -> bytes:
    """Run git-credential(1); what fails says nothing."""
    request = "".join(f"{key}={value}\n" for key, value in lines)
    try:
        return await run_git(
            *("credential", operation),
            gitdir=gitdir,
            stdin=f"{request}\n".encode("utf-8", "surrogateescape"),
            deadline_s=_HELPER_DEADLINE_S,
            env=None if gitdir else {"GIT_DIR": os.devnull},
            as_daemon=gitdir is None,
        )
    except GitFailed:
        return b""
