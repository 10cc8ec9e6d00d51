"""Remotes that do not speak protocol version 2: mirrored by git, and served from the mirror.

An old server, or a static ("dumb") one, cannot be asked for single objects. So `git fetch` keeps
a bare gitdir up to date, and our own ``git upload-pack`` answers from it everything that a modern
server would: filters, single objects, sizes. The price is the download of everything before the
first mount. An old server that does offer filters and any reachable object is mirrored without
blobs, and these are fetched into the mirror in batches as they are asked for.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import trio

from artifactfs.errors import (
    AuthenticationFailed,
    ObjectsMissing,
    RemoteBusy,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.remote.remote import Capabilities, Remote
from artifactfs.git.streams.process import local_connector, process_failure
from artifactfs.git.streams.stream import StreamTransport
from artifactfs.git.surroundings import variable
from artifactfs.git.wire import protocol
from artifactfs.git.wire.credentials import CredentialFile, credential_helper
from artifactfs.git.wire.sideband import passes
from artifactfs.git.wire.transport import Advertisement, RequestCounters
from artifactfs.git.wire.url import RemoteURL

Oid = bytes

_MARKER = "artifactfs-mirrored"
_WHOLE_FETCH_S = 6 * 3600.0
_UPDATE_S = 600.0
_ANY_OID = frozenset({"allow-reachable-sha1-in-want", "allow-any-sha1-in-want"})
_AUTHENTICATION = ("Authentication failed", "could not read Username", "could not read Password")

LIMIT_DUMB = (
    "the remote is a static (dumb) HTTP server: everything is downloaded once before the first "
    "mount, and kept in a mirror"
)
LIMIT_BUNDLE = (
    "the remote is a bundle, a file: everything in it is copied before the first mount, and kept "
    "in a mirror"
)
LIMIT_OLD = (
    "the remote speaks Git protocol {version} and cannot send single objects: everything is "
    "downloaded once before the first mount, and kept in a mirror"
)
LIMIT_OLD_FILTER = (
    "the remote speaks Git protocol {version}: history is downloaded before the first mount, "
    "files through a mirror by a git process for each batch, and sizes are not known before"
)

Version = Literal[2, 1, 0, "dumb", "bundle"]


class MirrorTransport(StreamTransport):
    """``git upload-pack`` on a mirror that git itself keeps up to date."""

    def __init__(
        self,
        url: RemoteURL,
        credentials: CredentialFile | None,
        mirror: Path,
        *,
        partial: bool,
        temporary: bool,
        deadline_s: float,
        counters: RequestCounters,
    ) -> None:
        connect = local_connector(mirror, url.url)
        super().__init__(connect, name=url.url, keep_s=0, deadline_s=deadline_s, counters=counters)
        self.alternate = mirror / "objects"
        self._url = url
        self._mirror = mirror
        self._partial = partial
        self._temporary = temporary
        self._options = _options(credentials, deadline_s)
        self._updating = trio.Lock()
        self._fresh = False

    async def open(self) -> None:
        """Make the mirror, or take the one that is there. Raises: RemoteError."""
        if not (self._mirror / _MARKER).exists():
            await trio.to_thread.run_sync(lambda: shutil.rmtree(self._mirror, ignore_errors=True))
            await run_git("init", "--quiet", "--bare", str(self._mirror))
            await trio.to_thread.run_sync(self._configure)
            await self._update(_WHOLE_FETCH_S)
            (self._mirror / _MARKER).touch()
            self._fresh = True

    def _configure(self) -> None:
        lines = [
            "[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n",
            '[remote "origin"]\n\tfetch = +refs/*:refs/*\n',
        ]
        if self._partial:
            lines.append("\tpromisor = true\n\tpartialclonefilter = blob:none\n")
            lines.append("[extensions]\n\tpartialClone = origin\n")
            lines.append("[core]\n\trepositoryformatversion = 1\n")
        with (self._mirror / "config").open("a") as file:
            file.writelines(lines)

    async def prepare_refs(self) -> None:
        """Fetch, unless the mirror was made just now. Raises: RemoteError."""
        async with self._updating:
            if self._fresh:
                self._fresh = False
                return
            await self._update(_UPDATE_S)

    async def prepare_objects(self, wants: frozenset[Oid]) -> None:
        """Fetch what a partial mirror lacks, in one batch. It moves no ref, so that a reader's
        need not wait for one of the background. Raises: RemoteError."""
        if not self._partial:
            return
        missing = await trio.to_thread.run_sync(_missing, self._mirror, wants)
        if missing:
            await self._git(
                *("-c", "fetch.negotiationAlgorithm=noop"),
                *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--stdin"),
                *("--filter=blob:none", "origin"),
                stdin="".join(f"{oid.hex()}\n" for oid in missing).encode(),
                seconds=_UPDATE_S,
            )

    async def aclose(self) -> None:
        await super().aclose()
        if self._temporary:
            remove = self._mirror.parent
            await trio.to_thread.run_sync(lambda: shutil.rmtree(remove, ignore_errors=True))

    async def _environment(self) -> dict[str, str]:
        """An ssh that does not ask, unless the user has a command of their own."""
        if self._url.scheme != "ssh" or variable("GIT_SSH_COMMAND") or variable("GIT_SSH"):
            return {}
        if (await read_configuration()).last("core.sshcommand") is not None:
            return {}
        return {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ServerAliveInterval=15"}

    async def _update(self, seconds: float) -> None:
        """Every ref, and HEAD. The URL is set each time: it may have changed."""
        await run_git("config", "remote.origin.url", self._url.url, gitdir=self._mirror)
        filters = ["--filter=blob:none"] if self._partial else []
        await self._git("fetch", "--quiet", "--prune", *filters, "origin", seconds=seconds)
        answer = await self._git("ls-remote", "--symref", "origin", "HEAD", seconds=_UPDATE_S)
        lines = answer.decode("utf-8", "surrogateescape").split("\n")
        heads = [line.removesuffix("\tHEAD") for line in lines if line.endswith("\tHEAD")]
        branches = [head for head in heads if head.startswith("ref: refs/")]
        if branches:
            branch = branches[0].removeprefix("ref: ")
            await run_git("symbolic-ref", "HEAD", branch, gitdir=self._mirror)
        elif heads:
            await self._detach(protocol.parse_oid(heads[0]))

    async def _detach(self, commit: Oid) -> None:
        """HEAD of the remote is detached, or nobody says what it is: perhaps of no branch."""
        if await trio.to_thread.run_sync(_missing, self._mirror, (commit,)):
            await self._git("fetch", "--quiet", "--no-tags", "origin", "HEAD", seconds=_UPDATE_S)
        arguments = ("update-ref", "--no-deref", "HEAD", commit.hex())
        await run_git(*arguments, gitdir=self._mirror)

    async def _git(self, *arguments: str, seconds: float, stdin: bytes = b"") -> bytes:
        self.counters.count("git")
        try:
            return await run_git(
                *self._options,
                *arguments,
                gitdir=self._mirror,
                stdin=stdin,
                deadline_s=seconds,
                env=await self._environment(),
                may_fetch=True,
            )
        except GitFailed as error:
            raise _remote_error(self._url, error) from error


def _options(credentials: CredentialFile | None, deadline_s: float) -> list[str]:
    """Settings for every git process: a stall of `deadline_s` ends it, whatever it has to do."""
    settings = [
        "http.lowSpeedLimit=1",
        f"http.lowSpeedTime={max(1, round(deadline_s))}",
    ]
    if credentials is not None and credentials.path.exists():
        settings += [
            "credential.helper=",
            f"credential.helper={credential_helper(credentials.path)}",
        ]
    return [word for setting in settings for word in ("-c", setting)]


def _remote_error(url: RemoteURL, error: GitFailed) -> RemoteError:
    if any(said in error.stderr for said in _AUTHENTICATION):
        return AuthenticationFailed(f"{url.url} refused the credentials")
    if "not our ref" in error.stderr or "unadvertised object" in error.stderr:
        return ObjectsMissing(f"{url.url}: {error.message}")
    if not error.stderr:
        return RemoteUnreachable(error.message)
    if isinstance(failed := process_failure(url.url, error.stderr), RemoteNotFound):
        return failed
    kind = RemoteBusy if passes(error.stderr) else RemoteUnreachable
    return kind(f"{url.url}: {error.message}")


def _missing(mirror: Path, oids: Iterable[Oid]) -> list[Oid]:
    database = ObjectDatabase(mirror)
    return [oid for oid in sorted(oids) if not database.contains(oid)]


_BUNDLE_LINE = 4096
_BUNDLE = (b"# v2 git bundle\n", b"# v3 git bundle\n")


def bundle_of(url: RemoteURL) -> RemoteURL | None:
    """The bundle (gitformat-bundle(5)) that a path names, with or without its suffix; None for
    anything else. Blocks. Raises: ProtocolError for SHA-256."""
    if url.scheme != "file" or Path(url.path).is_dir():
        return None
    for suffix in ("", ".bundle"):
        try:
            with Path(url.path + suffix).open("rb") as file:
                if file.read(len(_BUNDLE[0])) in _BUNDLE:
                    header = iter(lambda: file.readline(_BUNDLE_LINE), b"")
                    for line in itertools.takewhile(lambda line: line.startswith(b"@"), header):
                        if line == b"@object-format=sha256\n":
                            raise protocol.other_object_names()
                    return replace(url, url=url.url + suffix, path=url.path + suffix)
        except OSError:
            continue
    return None


async def open_mirrored(
    url: RemoteURL,
    credentials: CredentialFile | None,
    advertisement: Advertisement,
    version: Version,
    *,
    mirror: Path | None,
    deadline_s: float,
    counters: RequestCounters,
) -> Remote:
    """A `Remote` that answers from a mirror of `url`, which is made first if need be.

    Waits as long as the download of everything takes, as long as bytes arrive within `deadline_s`.
    Raises: RemoteError.
    """
    capabilities = mirrored_capabilities(advertisement, version)
    temporary = mirror is None
    if mirror is None:
        mirror = Path(tempfile.mkdtemp(prefix="artifact-fs-mirror-")) / "mirror.git"
    transport = MirrorTransport(
        url,
        credentials,
        mirror,
        partial=not capabilities.object_info,
        temporary=temporary,
        deadline_s=deadline_s,
        counters=counters,
    )
    try:
        await transport.open()
        packets = (await transport.advertisement()).packets
        server = protocol.parse_capabilities(packets[1:])
    except BaseException:
        with trio.CancelScope(shield=True):
            await transport.aclose()
        raise
    return Remote(
        transport,
        server,
        capabilities,
        name=url.url,
        deadline_s=deadline_s,
        counters=counters,
    )


def mirrored_capabilities(advertisement: Advertisement, version: Version) -> Capabilities:
    """What a `Remote` with a mirror of this server can do: all, but late.

    Only a server that offers filters and objects by oid is mirrored without blobs. Sizes of blobs
    that the mirror lacks would be fetched one by one, so it does not tell sizes.
    """
    offered = _offered(advertisement)
    partial = "filter" in offered and bool(offered & _ANY_OID)
    return Capabilities(version, True, not partial, True, (_limit(version, partial),))


def _offered(advertisement: Advertisement) -> frozenset[str]:
    """The capabilities of a version 0 or 1 server."""
    for packet in advertisement.packets:
        if isinstance(packet, bytes) and b"\0" in packet:
            return protocol.parse_v0_capabilities(packet)
    return frozenset()


def _limit(version: Version, partial: bool) -> str:
    if version == "dumb":
        return LIMIT_DUMB
    if version == "bundle":
        return LIMIT_BUNDLE
    return (LIMIT_OLD_FILTER if partial else LIMIT_OLD).format(version=version)
