"""Opening a remote: which transport reaches it, and what it can do.

A server that does not speak protocol version 2 is mirrored (`artifactfs.git.remote.mirror`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from artifactfs.errors import InvalidInput
from artifactfs.git.configuration.choice import own_settings
from artifactfs.git.configuration.entries import Configuration
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.configuration.rewriting import check_allowed, effective_remote
from artifactfs.git.identity import other_user_of
from artifactfs.git.remote.mirror import bundle_of, mirrored_capabilities, open_mirrored
from artifactfs.git.remote.remote import Capabilities, Remote, version_2_capabilities
from artifactfs.git.repository.refspecs import DEFAULT_NAME
from artifactfs.git.wire import protocol
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.git.wire.greeting import CLONE_PREFIXES, Greeting, TipWish, greet
from artifactfs.git.wire.transport import Advertisement, NeedsGit, RequestCounters, Transport
from artifactfs.git.wire.url import RemoteURL
from artifactfs.paths import leads_into

_CLOSE_S = 3.0


@dataclass(frozen=True, slots=True)
class Place:
    """Whose configuration counts: that of the remote `name` of `gitdir` (None: not made yet).

    `mount_point` is where this process serves it, and so must not look.
    """

    gitdir: Path | None = None
    name: str = DEFAULT_NAME
    mount_point: str | None = None


def _trusted(place: Place | None) -> Place:
    """Without a gitdir that is another user's: what its config names would run with our rights."""
    if place is None or other_user_of(place.gitdir) is not None:
        return replace(place, gitdir=None) if place is not None else Place()
    return place


async def open_remote(
    url: str,
    credentials: CredentialFile | None,
    *,
    deadline_s: float,
    expect_refs: bool = False,
    expect_tip: TipWish | None = None,
    arriving: trio.Nursery | None = None,
    mirror: Path | None = None,
    place: Place | None = None,
) -> Remote:
    """Reach the remote and learn what it can do: one round trip after connecting.

    `expect_refs` lists the refs for a clone (`CLONE_PREFIXES`) in the same round trip, and
    `expect_tip` fetches a tip in it where the remote can do that: the next `ls_refs`, and the next
    `fetch_pack`, of that are answered from it. A tip that takes long goes on to come in `arriving`;
    without that it is waited for. `mirror` is where a gitdir may be kept for a remote
    that does not speak protocol 2 (else a temporary one is made): making it downloads everything.
    `url` is rewritten as git is configured to. Userinfo in it is used where `credentials` has
    nothing. Raises: RemoteError, InvalidInput.
    """
    opening = await _opening(url, credentials, deadline_s, _trusted(place))
    if (bundle := await trio.to_thread.run_sync(bundle_of, opening.url)) is not None:
        return await open_mirrored(
            bundle,
            credentials,
            Advertisement(()),
            "bundle",
            mirror=mirror,
            deadline_s=deadline_s,
            counters=opening.counters,
        )
    async with opening.greeted(expect_refs, expect_tip, arriving) as (transport, greeting):
        remote_url, counters = opening.url, opening.counters
        if greeting.version != 2:
            await transport.aclose()
            return await open_mirrored(
                remote_url,
                credentials,
                greeting.advertisement,
                greeting.version,
                mirror=mirror,
                deadline_s=deadline_s,
                counters=counters,
            )
        server = protocol.parse_capabilities(greeting.advertisement.packets[1:])
        remote = Remote(
            transport,
            server,
            replace(version_2_capabilities(server), git_because=opening.git_because),
            name=remote_url.url,
            deadline_s=deadline_s,
            counters=counters,
        )
        if greeting.tip is not None:
            remote.expect_tip(greeting.tip)
        if greeting.refs is not None:
            remote.expect_refs(CLONE_PREFIXES, greeting.refs)
        elif expect_refs:
            remote.expect_refs(CLONE_PREFIXES, await remote.ls_refs(CLONE_PREFIXES))
        return remote
    raise AssertionError("unreachable")


async def probe_remote(
    url: str,
    credentials: CredentialFile | None,
    *,
    deadline_s: float,
    place: Place | None = None,
) -> Capabilities:
    """What the remote can do, without making the mirror that an old one needs.

    Raises: RemoteError, InvalidInput.
    """
    opening = await _opening(url, credentials, deadline_s, _trusted(place))
    if await trio.to_thread.run_sync(bundle_of, opening.url) is not None:
        return mirrored_capabilities(Advertisement(()), "bundle")
    async with opening.greeted(False, None) as (transport, greeting):
        await transport.aclose()
    packets = greeting.advertisement.packets
    if greeting.version == 2:
        capabilities = version_2_capabilities(protocol.parse_capabilities(packets[1:]))
    else:
        capabilities = mirrored_capabilities(greeting.advertisement, greeting.version)
    return replace(capabilities, git_because=opening.git_because)


async def _opening(
    url: str, credentials: CredentialFile | None, deadline_s: float, place: Place
) -> _Opening:
    """Raises: InvalidInput."""
    configuration = await read_configuration(place.gitdir)
    remote_url = effective_remote(url, configuration)
    check_allowed(remote_url.scheme, configuration)
    served = place.mount_point
    if remote_url.scheme == "file" and served is not None and leads_into(remote_url.path, served):
        raise InvalidInput(  # before anything asks what lies at that path: we would have to answer
            f"{remote_url.path} is in the mount of this repository: it cannot be its own remote",
            hint="name the one that it came from: artifact-fs set-remote",
        )
    return _Opening(remote_url, credentials, deadline_s, place, configuration)


@dataclass(slots=True)
class _Opening:
    """A remote that is being opened. `git_because` says why git asks for us."""

    url: RemoteURL
    credentials: CredentialFile | None
    deadline_s: float
    place: Place
    configuration: Configuration
    counters: RequestCounters = field(default_factory=RequestCounters)
    git_because: str | None = None

    @asynccontextmanager
    async def greeted(
        self, refs: bool, tip: TipWish | None, arriving: trio.Nursery | None = None
    ) -> AsyncIterator[tuple[Transport, Greeting]]:
        """A transport that has an answer; it is closed if the body fails. Raises: RemoteError.

        What only git can do shows in the configuration, or in the server's answer.
        """
        try:
            transport, greeting = await self._greet(refs, tip, arriving)
        except NeedsGit as needed:
            self.git_because = needed.message
            transport, greeting = await self._greet(False, None)
        async with _closed_on_failure(transport):
            yield transport, greeting

    async def _greet(
        self, refs: bool, tip: TipWish | None, arriving: trio.Nursery | None = None
    ) -> tuple[Transport, Greeting]:
        transport = await self._transport()
        ahead = self.url.is_http and self.git_because is None
        async with _closed_on_failure(transport):
            greeting = await greet(
                transport,
                self.url.url,
                self.deadline_s,
                refs=refs and ahead,
                tip=tip if ahead else None,
                arriving=arriving,
            )
        return transport, greeting

    async def _transport(self) -> Transport:
        """Imports are made here so that a local remote does not pay for httpx, and vice versa."""
        url, deadline_s, counters = self.url, self.deadline_s, self.counters
        if self.git_because is not None:
            return self._helper()
        if url.is_http:
            return await self._http()
        last, remote = self.configuration.last, self.place.name
        program = last(f"remote.{remote}.uploadpack")
        if url.scheme == "file":
            from artifactfs.git.streams.process import local_transport

            return await local_transport(
                url, deadline_s=deadline_s, counters=counters, program=program
            )
        if url.scheme == "ssh":
            from artifactfs.git.streams.ssh import SshSettings, ssh_transport

            settings = SshSettings(last("core.sshcommand"), last("ssh.variant"), program)
            return await ssh_transport(url, settings, deadline_s=deadline_s, counters=counters)
        if url.scheme == "git":
            from artifactfs.git.streams.git_daemon import daemon_transport

            proxies = self.configuration.all("core.gitproxy")
            return daemon_transport(
                url,
                proxies,
                deadline_s=deadline_s,
                counters=counters,
                program=program or "git-upload-pack",
            )
        raise InvalidInput(f"remotes of the kind {url.scheme} are not supported")

    async def _http(self) -> Transport:
        """Raises: NeedsGit."""
        from artifactfs.git.wire.http import HttpTransport

        settings_of = partial(own_settings, remote=self.place.name, gitdir=self.place.gitdir)
        return HttpTransport(
            self.url,
            self.credentials,
            deadline_s=self.deadline_s,
            counters=self.counters,
            settings=await own_settings(
                self.url, self.place.name, self.place.gitdir, self.configuration
            ),
            settings_of=settings_of,
            gitdir=self.place.gitdir,
        )

    def _helper(self) -> Transport:
        from artifactfs.git.streams.remote_https import HelperOptions, HelperTransport

        return HelperTransport(
            self.url,
            self.credentials,
            HelperOptions(self.place.name, self.place.gitdir),
            deadline_s=self.deadline_s,
            counters=self.counters,
        )


@asynccontextmanager
async def _closed_on_failure(transport: Transport) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
            await transport.aclose()
        raise
