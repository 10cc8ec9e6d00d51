"""Smart HTTP through git's own `git remote-https`, with every setting that git has.

It is asked as git asks it (gitremote-helpers(7)): after ``stateless-connect git-upload-pack`` and
an empty line in answer, its pipes carry protocol version 2. It sends each request, up to its flush
packet, as a POST, and marks the end of an answer with a response-end packet. So to us it is a
connection that takes one request after another. Proxies, certificates, cookies, `.netrc` and
credential helpers are its business; what it says on stderr becomes our error.

No secret is an argument: credentials of ours reach it by a helper that reads our file, or by an
environment variable.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.errors import (
    AuthenticationFailed,
    ProtocolError,
    RemoteBusy,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.git.apart import git_environment
from artifactfs.git.command import GitFailed, PipedProcess, git_command, last_message, open_process
from artifactfs.git.streams.process import ProcessConnection
from artifactfs.git.streams.stream import StreamConnection, StreamExchange, StreamTransport
from artifactfs.git.surroundings import Setting
from artifactfs.git.wire.credentials import Credential, CredentialFile, credential_helper
from artifactfs.git.wire.sideband import passes
from artifactfs.git.wire.transport import UNREACHABLE_HINT, Advertisement, RequestCounters
from artifactfs.git.wire.url import RemoteURL

_KEEP_S = 60.0
_LAST_WORDS_S = 1.0
_END_S = 2.0
_RESPONSE_END = 2
_ANSWER_LIMIT = 64
# A server of an old version, for the mirror: what it offers is between it and git.
_OLD_SERVER = b"0" * 40 + b" capabilities^{}\0"

_USER, _PASSWORD = "ARTIFACT_FS_REMOTE_USER", "ARTIFACT_FS_REMOTE_PASSWORD"
_SAY = f'printf "username=%s\\npassword=%s\\n" "${_USER}" "${_PASSWORD}"'
_HELPER_OF_ENVIRONMENT = f'!f() {{ test "$1" != get || {_SAY}; }}; f'

_AUTHENTICATION = re.compile(
    r"Authentication failed|could not read (Username|Password)|returned error: 40[13]|"
    r"Permission .*denied|terminal prompts disabled"
)
_NOT_FOUND = re.compile(r"repository '.*' not found|returned error: (404|410)")
_PROXY = re.compile(r"proxy", re.IGNORECASE)
_NOT_GIT = re.compile(r"not valid: is this a git repository|invalid server response")
_AUTH_HINT = "give a valid token with `artifact-fs set-remote`, or configure a credential helper"


class OldProtocol(RemoteError):
    """The server does not speak version 2: git has to fetch."""


@dataclass(frozen=True, slots=True)
class HelperOptions:
    """How git is to be asked: for which `remote` of which `gitdir` (None: not made yet)."""

    remote: str
    gitdir: Path | None


class HelperConnection(ProcessConnection):
    """The pipes of a connected `git remote-https`."""

    def __init__(self, process: PipedProcess, name: str) -> None:
        super().__init__(process, name)
        self._rest = b""

    async def connect(self) -> None:
        """Raises: OldProtocol, RemoteError."""
        try:
            await self.send_all(b"stateless-connect git-upload-pack\n")
        except trio.BrokenResourceError:
            await self._process.wait()
            raise self.failure() from None
        answer = b""
        while b"\n" not in answer:
            chunk = await self.receive_some(_ANSWER_LIMIT)
            if not chunk or len(answer) > _ANSWER_LIMIT:
                raise self.failure()
            answer += chunk
        line, _, self._rest = answer.partition(b"\n")
        if line == b"fallback":
            raise OldProtocol(f"{self._name} does not speak protocol version 2")
        if line:
            raise ProtocolError("git remote-https answers with something else than it should")

    async def receive_some(self, limit: int) -> bytes:
        if self._rest:
            chunk, self._rest = self._rest, b""
            return chunk
        chunk = await super().receive_some(limit)
        if not chunk:  # it is about to end: let it say why
            with trio.move_on_after(_LAST_WORDS_S):
                await self._process.wait()
        return chunk

    def failure(self) -> RemoteError:
        return helper_failure(self._name, self._process.stderr_text())


def helper_failure(name: str, stderr: str) -> RemoteError:
    """The exception for what git wrote to stderr before it ended."""
    said = last_message(stderr)
    if _NOT_FOUND.search(stderr):
        return RemoteNotFound(
            f"{name} has no such repository", hint="check the URL, and the token's rights"
        )
    if _AUTHENTICATION.search(stderr) and not (_PROXY.search(said) and "407" in said):
        return AuthenticationFailed(f"{name} refused the credentials: {said}", hint=_AUTH_HINT)
    if _NOT_GIT.search(stderr):
        return ProtocolError(
            f"{name} is not a Git repository: {said}",
            hint="check the URL; it should be the one that `git clone` takes",
        )
    reason = f": {said}" if said else ""
    kind = RemoteBusy if passes(stderr) else RemoteUnreachable
    return kind(f"no answer from {name}{reason}", hint=UNREACHABLE_HINT)


class AnswerEnd:
    """Finds the response-end packet (``0002``), which is at the end of each answer."""

    __slots__ = ("_header", "_left", "seen")

    def __init__(self) -> None:
        self.seen = False
        self._header = b""
        self._left = 0

    def feed(self, chunk: bytes) -> bytes:
        """`chunk` up to that packet, of which the first bytes may have been in an earlier one."""
        at, end = 0, len(chunk)
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                at, self._left = at + step, self._left - step
                continue
            piece = chunk[at : at + 4 - len(self._header)]
            at, self._header = at + len(piece), self._header + piece
            if len(self._header) < 4:
                break
            length, self._header = _length(self._header), b""
            if length == _RESPONSE_END:
                self.seen = True
                return chunk[: max(0, at - 4)]
            self._left = max(0, length - 4)
        return chunk


def _length(header: bytes) -> int:
    """Raises: ProtocolError."""
    try:
        return int(header, 16)
    except ValueError:
        raise ProtocolError("the remote's answer is not in pkt-lines") from None


class HelperExchange(StreamExchange):
    """The answer to one request, up to its response-end packet."""

    def __init__(
        self, connection: StreamConnection, transport: StreamTransport, first: bytes
    ) -> None:
        super().__init__(connection, transport, first)
        self._end = AnswerEnd()

    async def receive(self) -> bytes:
        while not self._end.seen:
            if data := self._end.feed(await super().receive()):
                return data
        return b""

    async def finish(self) -> None:
        """Read what marks the end; without it (git before 2.28) the connection is not kept."""
        with trio.move_on_after(_END_S):
            while not self._end.seen:
                self._end.feed(await super().receive())
            await super().finish()


class HelperTransport(StreamTransport):
    """One http(s) remote that git reaches for us."""

    def __init__(
        self,
        url: RemoteURL,
        credentials: CredentialFile | None,
        options: HelperOptions,
        *,
        deadline_s: float,
        counters: RequestCounters,
    ) -> None:
        super().__init__(
            self._open, name=url.url, keep_s=_KEEP_S, deadline_s=deadline_s, counters=counters
        )
        self._url = url
        self._credentials = credentials
        self._options = options
        self._refused: Credential | None = None

    async def advertisement(self) -> Advertisement:
        """As for any stream; where only git can talk to the server, that of an old one."""
        try:
            return await super().advertisement()
        except OldProtocol:
            return Advertisement((_OLD_SERVER,))

    def make_exchange(self, connection: StreamConnection, first: bytes) -> StreamExchange:
        return HelperExchange(connection, self, first)

    async def _open(self) -> StreamConnection:
        """With the credentials that are stored, and where those are refused, with git's own."""
        stored = self._credentials.get(self._url.url) if self._credentials else None
        if stored is None or stored == self._refused:
            return await self._start_helper(None)
        try:
            return await self._start_helper(stored)
        except AuthenticationFailed as refused:
            try:
                connection = await self._start_helper(None)
            except AuthenticationFailed:
                raise refused from None
            self._refused = stored
            return connection

    async def _start_helper(self, stored: Credential | None) -> HelperConnection:
        """Raises: RemoteError."""
        options, url = self._options, self._url
        command = git_command(f"remote-{url.scheme}", options.remote, url.url)
        environment, settings = self._authentication(stored)
        # The working tree that a gitdir names is the mount: no child of ours goes there.
        place = str(options.gitdir) if options.gitdir else os.devnull
        environment |= {"GIT_DIR": place, "GIT_WORK_TREE": "/"}
        whole = git_environment(environment, gitdir=options.gitdir, more=settings)
        try:
            process = await open_process(command, whole, cwd="/")
        except GitFailed as error:
            raise RemoteUnreachable(error.message) from error
        connection = HelperConnection(process, url.url)
        try:
            await connection.connect()
        except BaseException:
            await connection.close(gracefully=False)
            raise
        return connection

    def _authentication(
        self, stored: Credential | None
    ) -> tuple[dict[str, str], tuple[Setting, ...]]:
        """What tells git of credentials that we have, and of protocol version 2."""
        settings: list[Setting] = [("protocol.version", "2")]
        environment: dict[str, str] = {}
        url = self._url
        if stored is not None and self._credentials is not None:
            settings += [
                ("credential.helper", ""),
                ("credential.helper", credential_helper(self._credentials.path)),
                (f"credential.{url.origin}.useHttpPath", "false"),
                ("credential.useHttpPath", "false"),
            ]
        elif url.password is not None:
            environment = {_USER: url.username or "", _PASSWORD: url.password}
            settings += [("credential.helper", ""), ("credential.helper", _HELPER_OF_ENVIRONMENT)]
        elif url.username:
            settings.append((f"credential.{url.origin}.username", url.username))
        return environment, tuple(settings)
