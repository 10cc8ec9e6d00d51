"""pkt-line framing (gitprotocol-common(5)), for both ends of Git's protocol."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from artifactfs.errors import ProtocolError

MAX_PAYLOAD = 65_516
"""Bytes in one pkt-line, without the four of its length."""


class PktLineError(ProtocolError):
    """What came is not in the pkt-line format, or breaks off within a pkt-line."""


class Special(enum.Enum):
    """The packets that carry no data."""

    FLUSH = b"0000"
    DELIM = b"0001"
    RESPONSE_END = b"0002"


Packet = bytes | Special

FLUSH = Special.FLUSH
DELIM = Special.DELIM

_SPECIALS = {0: Special.FLUSH, 1: Special.DELIM, 2: Special.RESPONSE_END}


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
    def pending(self) -> bytes:
        """The part of a packet that is not complete yet."""
        return self._buffer

    def feed(self, chunk: bytes) -> list[Packet]:
        """The packets that `chunk` completes. Raises: PktLineError."""
        packets, self._buffer, _flushed = _split(self._joined(chunk), until_flush=False)
        return packets

    def feed_until_flush(self, chunk: bytes) -> tuple[list[Packet], bytes | None]:
        """Like `feed`, but stop behind a flush.

        Returns the packets and what follows the flush, or None for the latter while no flush has
        come. Raises: PktLineError.
        """
        packets, rest, flushed = _split(self._joined(chunk), until_flush=True)
        self._buffer = b"" if flushed else rest
        return packets, rest if flushed else None

    def _joined(self, chunk: bytes) -> bytes:
        return self._buffer + chunk if self._buffer else chunk


def _split(data: bytes, *, until_flush: bool) -> tuple[list[Packet], bytes, bool]:
    """The packets in `data`, what is left of it, and whether a flush ended this."""
    packets: list[Packet] = []
    offset, end = 0, len(data)
    while end - offset >= 4:
        length = _length(data[offset : offset + 4])
        if length <= 4:
            # An empty packet (0004) is legal and means nothing to anybody: pass it on.
            packets.append(_SPECIALS[length] if length < 4 else b"")
            offset += 4
            if until_flush and length == 0:
                return packets, data[offset:], True
            continue
        if end - offset < length:
            break
        packets.append(data[offset + 4 : offset + length])
        offset += length
    return packets, data[offset:], False


def next_packet(data: bytes, at: int) -> tuple[Packet, int] | None:
    """What begins at `at`, as far as it is there, and how long it is with the four bytes of its
    length. None where even those are not there. Raises: PktLineError."""
    if len(data) - at < 4:
        return None
    length = _length(data[at : at + 4])
    if length < 4:
        return _SPECIALS[length], 4
    return data[at + 4 : at + length], length


def _length(digits: bytes) -> int:
    try:
        length = int(digits, 16)
    except ValueError:
        length = 3
    if length == 3 or length > MAX_PAYLOAD + 4 or not digits.isalnum():
        raise PktLineError("what was sent is not in Git's pkt-line format")
    return length
