"""Connections to a process that speaks protocol version 2: ``git upload-pack`` here, or ssh."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from artifactfs.errors import (
    AuthenticationFailed,
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
)
from artifactfs.git.streams.stream import Connector, StreamConnection, StreamTransport
from artifactfs.git.wire.sideband import passes
from artifactfs.git.wire.transport import UNREACHABLE_HINT, RequestCounters, deadline
from artifactfs.git.wire.url import RemoteURL

_KEEP_REMOTE_S = 60.0
_MOST_PATH = 4096
_VERSION_2 = {"GIT_PROTOCOL": "version=2"}
# We run this upload-pack ourselves, so what a server's owner would have to allow is ours to allow.
_LOCAL_CONFIG = (
    "uploadpack.allowFilter=true",
    "uploadpack.allowAnySHA1InWant=true",
    "transfer.advertiseObjectInfo=true",
    "pack.window=0",
    "core.attributesFile=/dev/null",  # it may be in a mount of ours, and only knows of deltas
)
_NOT_FOUND = re.compile(
    r"does not appear to be a git repository|repository .*not (found|exported)|not found|"
    r"no such file|does not exist",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"detected dubious ownership in repository at '(.+)'")
_OF_SSH_ALONE = re.compile(
    r"^(warning: |load key |load pubkey |no such identity: |identity file |control ?socket |"
    r"mux_client|\*\* |debug\d: ).*\n?",
    re.IGNORECASE | re.MULTILINE,
)
"""What ssh(1) notes of its own files and goes on; it names files that are not there or denied."""
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
        self._answered = False

    async def send_all(self, data: bytes) -> None:
        await self._process.stdin.send_all(data)

    async def receive_some(self, limit: int) -> bytes:
        chunk = bytes(await self._process.stdout.receive_some(limit))
        self._answered = self._answered or bool(chunk)
        return chunk

    def failure(self) -> RemoteError:
        stderr = self._process.stderr_text()
        if self._answered:  # so it is there, and ours to read, whatever stderr says of files
            return _ended(self._name, stderr)
        return process_failure(self._name, stderr)

    async def close(self, *, gracefully: bool) -> None:
        await self._process.close(grace_s=2.0 if gracefully else 0.0)


def process_failure(name: str, stderr: str) -> RemoteError:
    """The exception for what ssh or upload-pack wrote to stderr, and answered nothing."""
    stderr = _OF_SSH_ALONE.sub("", stderr)
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
    return _ended(name, stderr)


def _ended(name: str, stderr: str) -> RemoteError:
    said = last_message(stderr)
    kind = RemoteBusy if passes(stderr) else RemoteUnreachable
    return kind(
        f"{name} ended the connection" + (f": {said}" if said else ""), hint=UNREACHABLE_HINT
    )


async def local_transport(
    url: RemoteURL, *, deadline_s: float, counters: RequestCounters, program: str | None = None
) -> StreamTransport:
    """``git upload-pack`` on a path: 4 ms to start, so none is kept.

    `program` is what ``remote.NAME.uploadpack`` names in its place.
    The path may be on a disk, or in a mount, that does not answer. Raises: RemoteError.
    """
    find = partial(local_repository, url)
    with deadline(deadline_s, url.url):
        gitdir = await trio.to_thread.run_sync(find, abandon_on_cancel=True)
    connect = local_connector(gitdir, url.url)
    if program is not None:
        words = ["/bin/sh", "-c", f"{program} {quoted_path(url.path)}"]

        async def connect() -> StreamConnection:
            return await connected_process(words, url.url)

    return StreamTransport(
        connect, name=url.url, keep_s=0, deadline_s=deadline_s, counters=counters
    )


def local_connector(gitdir: Path, name: str) -> Connector:
    """Opens connections to an upload-pack of `gitdir` that allows everything."""
    options = [word for pair in _LOCAL_CONFIG for word in ("-c", pair)]
    command = git_command(*options, "upload-pack", str(gitdir))

    async def connect() -> StreamConnection:
        return await connected_process(command, name)

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


def is_shallow(url: RemoteURL) -> bool:
    """Whether the repository that a path names lacks the parents of some commits. Of a remote that
    is no path only its packs say it. Blocks on the disk. Raises: RemoteNotFound, OSError."""
    if url.scheme != "file":
        return False
    gitdir = local_repository(url)
    if gitdir.is_file():  # a bundle, or the gitfile of a worktree
        with gitdir.open("rb") as file:
            start = file.read(_MOST_PATH).decode("utf-8", "surrogateescape")
        if not start.startswith("gitdir: "):
            return False
        gitdir = gitdir.parent / start.removeprefix("gitdir: ").rstrip("\n")
    with suppress(OSError):
        gitdir /= os.fsdecode((gitdir / "commondir").read_bytes().rstrip(b"\n"))
    try:
        return (gitdir / "shallow").stat().st_size > 0
    except OSError:
        return False


def quoted_path(path: str) -> str:
    """sq_quote of git: what its own ssh commands and restricted shells expect."""
    escaped = path.replace("'", "'\\''").replace("!", "'\\!'")
    return f"'{escaped}'"


async def connected_process(command: list[str], name: str) -> ProcessConnection:
    """A process that speaks protocol version 2. Raises: RemoteUnreachable."""
    try:
        return ProcessConnection(await open_process(command, git_environment(_VERSION_2)), name)
    except GitFailed as error:
        raise RemoteUnreachable(error.message) from error
