"""pkt-line framing and side-band demultiplexing (gitprotocol-common(5), gitprotocol-pack(5))."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

from artifactfs.errors import ObjectsMissing, ProtocolError, RemoteError, RemoteNotFound
from artifactfs.redact import foreign_text

MAX_PAYLOAD = 65516


class Special(enum.Enum):
    """The packets that carry no data."""

    FLUSH = b"0000"
    DELIM = b"0001"
    RESPONSE_END = b"0002"


Packet = bytes | Special

FLUSH = Special.FLUSH
DELIM = Special.DELIM

_SPECIALS = {0: Special.FLUSH, 1: Special.DELIM, 2: Special.RESPONSE_END}
_NOT_OUR_REF = re.compile(r"not our ref ([0-9a-f]{40})")


def encode(packets: Iterable[Packet | str]) -> bytes:
    """The packets on the wire. Raises: ValueError for a payload above 65,516 bytes."""
    parts: list[bytes] = []
    for packet in packets:
        if isinstance(packet, Special):
            parts.append(packet.value)
            continue
        payload = packet.encode() if isinstance(packet, str) else packet
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"a pkt-line holds {MAX_PAYLOAD} bytes, not {len(payload)}")
        parts.append(b"%04x" % (len(payload) + 4))
        parts.append(payload)
    return b"".join(parts)


class PacketDecoder:
    """Turns chunks of any size into packets."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def pending(self) -> int:
        """Bytes of a packet that is not complete yet."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[Packet]:
        """The packets that `chunk` completes. Raises: ProtocolError."""
        data = self._buffer + chunk if self._buffer else chunk
        packets: list[Packet] = []
        offset, end = 0, len(data)
        while end - offset >= 4:
            length = _length(data[offset : offset + 4])
            if length <= 4:
                # An empty packet (0004) is legal and means nothing to anybody: pass it on.
                packets.append(_SPECIALS[length] if length < 4 else b"")
                offset += 4
                continue
            if end - offset < length:
                break
            packets.append(data[offset + 4 : offset + length])
            offset += length
        self._buffer = data[offset:]
        return packets


def _length(digits: bytes) -> int:
    try:
        length = int(digits, 16)
    except ValueError:
        length = 3
    if length == 3 or not digits.isalnum():
        raise ProtocolError("the remote's answer is not in Git's pkt-line format")
    return length


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
