"""What a server says beside the data: ``ERR`` packets and side bands (gitprotocol-pack(5))."""

from __future__ import annotations

import re

from artifactfs.errors import ObjectsMissing, ProtocolError, RemoteError, RemoteNotFound
from artifactfs.pktline import Packet
from artifactfs.redact import foreign_text

_NOT_OUR_REF = re.compile(r"not our ref ([0-9a-f]{40})")


def remote_error(message: bytes | str) -> RemoteError:
    """The exception for what follows ``ERR``, or came on side band 3."""
    text = foreign_text(message)
    if missing := _NOT_OUR_REF.findall(text):
        oids = frozenset(bytes.fromhex(oid) for oid in missing)
        return ObjectsMissing(f"the remote lacks {', '.join(sorted(set(missing)))}", oids)
    if "repository not exported" in text:  # git-daemon(1)
        return RemoteNotFound(f"the remote refused: {text}", hint="check the path")
    return ProtocolError(f"the remote refused: {text}")


def check_error(packet: Packet) -> Packet:
    """`packet`, unless it is an ``ERR`` packet. Raises: ObjectsMissing, ProtocolError."""
    if isinstance(packet, bytes) and packet.startswith(b"ERR "):
        raise remote_error(packet[4:])
    return packet


def side_band_data(packet: bytes) -> bytes:
    """The pack bytes of a side-band packet; empty for progress and keep-alives.

    Raises: ObjectsMissing, ProtocolError for what the server says on band 3.
    """
    band = packet[:1]
    if band == b"\x01":
        return packet[1:]
    if band == b"\x02" or not packet:
        return b""
    if band == b"\x03":
        raise remote_error(packet[1:])
    check_error(packet)
    raise ProtocolError("the remote sent an unknown side band")
