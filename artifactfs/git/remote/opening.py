"""Opening a remote: which transport reaches it, and what it can do.

A server that does not speak protocol version 2 is mirrored (`artifactfs.git.remote.mirror`).
"""

from __future__ import annotations

from pathlib import Path

import trio

from artifactfs.errors import InvalidInput
from artifactfs.git.remote.mirror import mirrored_capabilities, open_mirrored
from artifactfs.git.remote.remote import Capabilities, Remote, version_2_capabilities
from artifactfs.git.wire import protocol
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.git.wire.greeting import CLONE_PREFIXES, TipWish, greet
from artifactfs.git.wire.transport import RequestCounters, Transport
from artifactfs.git.wire.url import RemoteURL, parse_remote

_CLOSE_S = 3.0


async def open_remote(
    url: str,
    credentials: CredentialFile | None,
    *,
    deadline_s: float,
    expect_refs: bool = False,
    expect_tip: TipWish | None = None,
    mirror: Path | None = None,
) -> Remote:
    """Reach the remote and learn what it can do: one round trip after connecting.

    `expect_refs` lists the refs for a clone (`CLONE_PREFIXES`) in the same round trip, and
    `expect_tip` fetches a tip in it where the remote can do that: the next `ls_refs`, and the next
    `fetch_pack`, of that are answered from it. `mirror` is where a gitdir may be kept for a remote
    that does not speak protocol 2 (else a temporary one is made): making it downloads everything.
    Userinfo in `url` is used where `credentials` has nothing. Raises: RemoteError, InvalidInput.
    """
    remote_url = parse_remote(url)
    counters = RequestCounters()
    transport = await _transport(remote_url, credentials, deadline_s, counters)
    try:
        greeting = await greet(
            transport,
            remote_url.url,
            deadline_s,
            refs=expect_refs and remote_url.is_http,
            tip=expect_tip if remote_url.is_http else None,
        )
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
            version_2_capabilities(server),
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
    except BaseException:
        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
            await transport.aclose()
        raise


async def probe_remote(
    url: str, credentials: CredentialFile | None, *, deadline_s: float
) -> Capabilities:
    """What the remote can do, without making the mirror that an old one needs.

    Raises: RemoteError, InvalidInput.
    """
    remote_url = parse_remote(url)
    transport = await _transport(remote_url, credentials, deadline_s, RequestCounters())
    try:
        greeting = await greet(transport, remote_url.url, deadline_s)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
            await transport.aclose()
    packets = greeting.advertisement.packets
    if greeting.version == 2:
        return version_2_capabilities(protocol.parse_capabilities(packets[1:]))
    return mirrored_capabilities(greeting.advertisement, greeting.version)


async def _transport(
    url: RemoteURL,
    credentials: CredentialFile | None,
    deadline_s: float,
    counters: RequestCounters,
) -> Transport:
    """Imports are made here so that a local remote does not pay for httpx, and vice versa."""
    if url.is_http:
        from artifactfs.git.wire.http import open_http

        return await open_http(url, credentials, deadline_s=deadline_s, counters=counters)
    from artifactfs.git.wire import process as transport_process

    if url.scheme == "file":
        return transport_process.local_transport(url, deadline_s=deadline_s, counters=counters)
    if url.scheme == "ssh":
        return await transport_process.ssh_transport(url, deadline_s=deadline_s, counters=counters)
    if url.scheme == "git":
        return transport_process.daemon_transport(url, deadline_s=deadline_s, counters=counters)
    raise InvalidInput(f"remotes of the kind {url.scheme} are not supported")
