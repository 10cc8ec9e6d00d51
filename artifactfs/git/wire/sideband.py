"""What a server says beside the data: ``ERR`` packets and side bands (gitprotocol-pack(5))."""

from __future__ import annotations

import re

from artifactfs.errors import ObjectsMissing, ProtocolError, RemoteError, RemoteNotFound
from artifactfs.pktline import Packet, Special, next_packet
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


_PASSES = re.compile(
    r"temporary failure in name resolution|could not resolve host|connection reset|"
    r"connection timed out|connection closed by|remote end hung up|early eof|"
    r"returned error: (?:429|5\d\d)|RPC failed",
    re.IGNORECASE,
)


def passes(said: str) -> bool:
    """Whether what git or ssh said is of a failure that is likely to pass."""
    return _PASSES.search(said) is not None


class SideBands:
    """Turns chunks of any size into the data of side band 1, without waiting for whole packets.

    A packet of a pack is up to 64 KB: a minute, over a slow line.
    """

    __slots__ = ("_buffer", "_left")

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0
        """Bytes of a packet of data that are to come."""

    def feed(self, chunk: bytes) -> tuple[list[bytes], Special | None]:
        """The pieces of data in `chunk`, and the special packet that it ends with, if any.

        An empty piece is a sign of life. Raises: PktLineError, ObjectsMissing, ProtocolError.
        """
        data = self._buffer + chunk if self._buffer else chunk
        pieces: list[bytes] = []
        at = min(self._left, len(data))
        if at:
            pieces.append(data[:at])
            self._left -= at
        while (found := next_packet(data, at)) is not None:
            packet, length = found
            if isinstance(packet, Special):
                return pieces, packet
            end = at + length
            if end > len(data):
                if data[at + 4 : at + 5] != b"\x01":
                    break
                self._left = end - len(data)
                packet = data[at + 4 :]
            pieces.append(side_band_data(packet))
            at = min(end, len(data))
        self._buffer = data[at:]
        return pieces, None
