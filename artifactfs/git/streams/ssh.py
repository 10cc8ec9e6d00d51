"""``ssh HOST git-upload-pack 'PATH'``, with the ssh that git is told to use (git-config(1)).

What git finds out of an ssh of another name, we find out in the same way: whether it understands
``-G`` as OpenSSH does. OpenSSH is kept from asking anything, and from waiting for ever.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from artifactfs.errors import InvalidInput
from artifactfs.git.apart import git_environment
from artifactfs.git.command import GitFailed, open_process
from artifactfs.git.streams.process import connected_process, quoted_path
from artifactfs.git.streams.stream import StreamConnection, StreamTransport
from artifactfs.git.surroundings import variable
from artifactfs.git.wire.transport import RequestCounters
from artifactfs.git.wire.url import RemoteURL

Variant = Literal["ssh", "simple", "plink", "putty", "tortoiseplink"]

UPLOAD_PACK = "git-upload-pack"
_KEEP_S = 60.0
_DETECT_S = 10.0
_BY_NAME: dict[str, Variant] = {
    "ssh": "ssh",
    "ssh.exe": "ssh",
    "plink": "plink",
    "plink.exe": "plink",
    "tortoiseplink": "tortoiseplink",
    "tortoiseplink.exe": "tortoiseplink",
}
_BY_SETTING: dict[str, Variant] = {
    "plink": "plink",
    "putty": "putty",
    "tortoiseplink": "tortoiseplink",
    "simple": "simple",
}


@dataclass(frozen=True, slots=True)
class SshSettings:
    """``core.sshCommand``, ``ssh.variant`` and ``remote.NAME.uploadpack``; None: not set."""

    command: str | None = None
    variant: str | None = None
    upload_pack: str | None = None

    @property
    def shell_command(self) -> str | None:
        """What a shell is to run, of the environment or of the configuration."""
        given = variable("GIT_SSH_COMMAND")
        return self.command if given is None else given


async def ssh_transport(
    url: RemoteURL, settings: SshSettings, *, deadline_s: float, counters: RequestCounters
) -> StreamTransport:
    """Connects when it is first needed. Raises: InvalidInput for what that ssh cannot be told."""
    command = await ssh_command(url, settings, deadline_s)

    async def connect() -> StreamConnection:
        return await connected_process(command, url.url)

    return StreamTransport(
        connect, name=url.url, keep_s=_KEEP_S, deadline_s=deadline_s, counters=counters
    )


async def ssh_command(url: RemoteURL, settings: SshSettings, deadline_s: float) -> list[str]:
    """What to run: GIT_SSH_COMMAND, core.sshCommand, GIT_SSH, ssh, in git's order.

    Raises: InvalidInput.
    """
    shell = settings.shell_command
    program = variable("GIT_SSH") or "ssh"
    start = ["/bin/sh", "-c", f'{shell} "$@"', shell] if shell is not None else [program]
    address = f"{url.username}@{url.host}" if url.username else url.host
    variant = _named_variant(settings, shell, program)
    if variant is None:
        variant = await _detected(start, url, address, min(_DETECT_S, deadline_s))
    options = [*_quiet(variant, deadline_s), *_port(variant, url.port)]
    upload_pack = f"{settings.upload_pack or UPLOAD_PACK} {quoted_path(url.path)}"
    return [*start, *options, address, upload_pack]


def _named_variant(settings: SshSettings, shell: str | None, program: str) -> Variant | None:
    """What the user says it is, or its name does; None: it has to be tried."""
    given = variable("GIT_SSH_VARIANT")
    given = settings.variant if given is None else given
    if given is not None and given != "auto":
        return _BY_SETTING.get(given, "ssh")
    name = program
    if shell is not None:
        try:
            name = next(iter(shlex.split(shell)), "")
        except ValueError:
            return None
    return _BY_NAME.get(Path(name).name.lower())


async def _detected(start: list[str], url: RemoteURL, address: str, deadline_s: float) -> Variant:
    """It is an OpenSSH if it prints its configuration within `deadline_s` when asked as one."""
    command = [*start, "-G", "-o", "SendEnv=GIT_PROTOCOL", *_port("ssh", url.port), address]
    try:
        process = await open_process(command, git_environment({"GIT_PROTOCOL": "version=2"}))
    except GitFailed:
        return "simple"
    return "ssh" if await process.close(grace_s=deadline_s) == 0 else "simple"


def _quiet(variant: Variant, deadline_s: float) -> list[str]:
    if variant == "tortoiseplink":
        return ["-batch"]
    if variant != "ssh":
        return []
    return [
        *("-o", "BatchMode=yes", "-o", "SendEnv=GIT_PROTOCOL"),
        *("-o", f"ConnectTimeout={max(1, round(min(deadline_s, 15)))}"),
        *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=2"),
    ]


def _port(variant: Variant, port: int | None) -> list[str]:
    """Raises: InvalidInput."""
    if port is None:
        return []
    if variant == "simple":
        raise InvalidInput(
            "this ssh cannot be given a port", hint="set GIT_SSH_VARIANT=ssh if it is an OpenSSH"
        )
    return ["-p" if variant == "ssh" else "-P", str(port)]
