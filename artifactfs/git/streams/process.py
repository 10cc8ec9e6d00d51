"""How stateful connections are opened: ``git upload-pack`` here, over ssh, or git://."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from pathlib import Path

import trio

from artifactfs.errors import (
    AuthenticationFailed,
    InvalidInput,
    RemoteBusy,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.git.apart import git_environment
from artifactfs.git.command import (
    GitFailed,
    PipedProcess,
    git_command,
    last_message,
    open_process,
    run_git,
)
from artifactfs.git.streams.stream import Connector, StreamConnection, StreamTransport
from artifactfs.git.wire.sideband import passes
from artifactfs.git.wire.transport import UNREACHABLE_HINT, RequestCounters
from artifactfs.git.wire.url import DEFAULT_PORTS, RemoteURL
from artifactfs.redact import redact

_KEEP_REMOTE_S = 60.0
_VERSION_2 = {"GIT_PROTOCOL": "version=2"}
# We run this upload-pack ourselves, so what a server's owner would have to allow is ours to allow.
_LOCAL_CONFIG = (
    "uploadpack.allowFilter=true",
    "uploadpack.allowAnySHA1InWant=true",
    "transfer.advertiseObjectInfo=true",
    "pack.window=0",
)
_NOT_FOUND = re.compile(
    r"does not appear to be a git repository|repository .*not (found|exported)|not found|"
    r"no such file|does not exist",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"detected dubious ownership in repository at '(.+)'")
_DENIED = re.compile(
    r"permission denied|host key verification failed|access denied|authentication failed|"
    r"too many authentication failures",
    re.IGNORECASE,
)


class ProcessConnection:
    """The pipes of an upload-pack or ssh process."""

    def __init__(self, process: PipedProcess, name: str) -> None:
        self._process = process
        self._name = name

    async def send_all(self, data: bytes) -> None:
        await self._process.stdin.send_all(data)

    async def receive_some(self, limit: int) -> bytes:
        return bytes(await self._process.stdout.receive_some(limit))

    def failure(self) -> RemoteError:
        return process_failure(self._name, self._process.stderr_text())

    async def close(self, *, gracefully: bool) -> None:
        await self._process.close(grace_s=2.0 if gracefully else 0.0)


class SocketConnection:
    """A connection to git-daemon(1)."""

    def __init__(self, stream: trio.SocketStream, name: str) -> None:
        self._stream = stream
        self._name = name

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, limit: int) -> bytes:
        return bytes(await self._stream.receive_some(limit))

    def failure(self) -> RemoteError:
        return RemoteUnreachable(f"{self._name} closed the connection")

    async def close(self, *, gracefully: bool) -> None:
        with trio.CancelScope(shield=True), contextlib.suppress(trio.BrokenResourceError):
            await self._stream.aclose()


def process_failure(name: str, stderr: str) -> RemoteError:
    """The exception for what ssh or upload-pack wrote to stderr before it ended."""
    said = last_message(stderr)
    if _DENIED.search(stderr):
        return AuthenticationFailed(
            f"{name} denied access: {said}",
            hint="check that `ssh` reaches the host without asking (agent, key, known_hosts)",
        )
    if _NOT_FOUND.search(stderr) and "hostname" not in stderr:
        return RemoteNotFound(f"{name} has no such repository: {said}", hint="check the path")
    if foreign := _FOREIGN.search(stderr):
        return AuthenticationFailed(
            f"{name} belongs to another user, and git does not trust it",
            hint=f"where it lies: git config --global --add safe.directory {foreign[1]}",
        )
    kind = RemoteBusy if passes(stderr) else RemoteUnreachable
    return kind(
        f"{name} ended the connection" + (f": {said}" if said else ""), hint=UNREACHABLE_HINT
    )


def local_transport(
    url: RemoteURL, *, deadline_s: float, counters: RequestCounters
) -> StreamTransport:
    """``git upload-pack`` on a path: 4 ms to start, so none is kept."""
    connect = local_connector(local_repository(url), url.url)
    return StreamTransport(
        connect, name=url.url, keep_s=0, deadline_s=deadline_s, counters=counters
    )


def local_connector(gitdir: Path, name: str) -> Connector:
    """Opens connections to an upload-pack of `gitdir` that allows everything."""
    options = [word for pair in _LOCAL_CONFIG for word in ("-c", pair)]
    command = git_command(*options, "upload-pack", str(gitdir))

    async def connect() -> StreamConnection:
        return await _process(command, name)

    return connect


def local_repository(url: RemoteURL) -> Path:
    """The gitdir that a path names. Raises: RemoteNotFound."""
    path = Path(url.path)
    for candidate in (path / ".git", path, path.with_name(path.name + ".git")):
        if (candidate / "objects").is_dir() or candidate.is_file():
            return candidate
    if path.exists():
        raise RemoteNotFound(f"{url.path} is not a Git repository", hint="check the path")
    raise RemoteNotFound(f"{url.path} does not exist", hint="check the path")


async def ssh_transport(
    url: RemoteURL, *, deadline_s: float, counters: RequestCounters
) -> StreamTransport:
    """``ssh HOST git-upload-pack 'PATH'``, with the user's own ssh command and never a prompt."""
    command = await ssh_command(url, deadline_s)

    async def connect() -> StreamConnection:
        return await _process(command, url.url)

    return StreamTransport(
        connect, name=url.url, keep_s=_KEEP_REMOTE_S, deadline_s=deadline_s, counters=counters
    )


async def ssh_command(url: RemoteURL, deadline_s: float) -> list[str]:
    """What to run: GIT_SSH_COMMAND, core.sshCommand, GIT_SSH, ssh, in git's order."""
    shell = await user_ssh_command()
    program = os.environ.get("GIT_SSH", "ssh")
    words = shlex.split(shell) if shell else [program]
    openssh = _is_openssh(words[0])
    address = f"{url.username}@{url.host}" if url.username else url.host
    options: list[str] = []
    if openssh:
        options = [
            *("-o", "BatchMode=yes", "-o", "SendEnv=GIT_PROTOCOL"),
            *("-o", f"ConnectTimeout={max(1, round(min(deadline_s, 15)))}"),
            *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=2"),
        ]
        if url.port:
            options += ["-p", str(url.port)]
    elif url.port:
        raise InvalidInput(
            f"{words[0]} cannot be given a port", hint="set GIT_SSH_VARIANT=ssh if it is an ssh"
        )
    arguments = [*options, address, f"git-upload-pack {_quoted(url.path)}"]
    if shell:
        return ["/bin/sh", "-c", f'{shell} "$@"', shell, *arguments]
    return [program, *arguments]


def _is_openssh(program: str) -> bool:
    variant = os.environ.get("GIT_SSH_VARIANT")
    return variant == "ssh" if variant else Path(program).name in ("ssh", "ssh.exe")


def _quoted(path: str) -> str:
    """sq_quote of git: what its own ssh commands and restricted shells expect."""
    escaped = path.replace("'", "'\\''").replace("!", "'\\!'")
    return f"'{escaped}'"


async def user_ssh_command() -> str:
    """The shell command that the user set for ssh; empty for none."""
    if command := os.environ.get("GIT_SSH_COMMAND"):
        return command
    try:
        output = await run_git("config", "--get", "core.sshCommand", deadline_s=10)
    except GitFailed:
        return ""
    return output.decode("utf-8", "replace").strip()


async def _process(command: list[str], name: str) -> ProcessConnection:
    try:
        return ProcessConnection(await open_process(command, git_environment(_VERSION_2)), name)
    except GitFailed as error:
        raise RemoteUnreachable(error.message) from error


def daemon_transport(
    url: RemoteURL, *, deadline_s: float, counters: RequestCounters
) -> StreamTransport:
    """git:// (gitprotocol-pack(5), "Git Transport")."""
    port = url.port or DEFAULT_PORTS["git"]
    host = f"{url.host}:{url.port}" if url.port else url.host
    hello = f"git-upload-pack {url.path}\0host={host}\0\0version=2\0".encode()

    async def connect() -> StreamConnection:
        try:
            stream = await trio.open_tcp_stream(url.host, port)
        except OSError as error:
            raise RemoteUnreachable(
                f"no connection to {url.origin}: {redact(str(error))}"
            ) from error
        connection = SocketConnection(stream, url.url)
        try:
            await connection.send_all(b"%04x" % (len(hello) + 4) + hello)
        except trio.BrokenResourceError as error:
            await connection.close(gracefully=False)
            raise connection.failure() from error
        except BaseException:
            await connection.close(gracefully=False)
            raise
        return connection

    return StreamTransport(
        connect, name=url.url, keep_s=_KEEP_REMOTE_S, deadline_s=deadline_s, counters=counters
    )
