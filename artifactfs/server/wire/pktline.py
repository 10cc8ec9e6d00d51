"""pkt-line framing, as gitprotocol-common(5) specifies it."""

from __future__ import annotations

from enum import Enum

MAX_PKT = 65_520
FLUSH = b"0000"


class PktError(ValueError):
    """The bytes are not pkt-lines."""


class Marker(Enum):
    """A pkt-line without a payload."""

    FLUSH = 0
    DELIM = 1
    RESPONSE_END = 2


Pkt = bytes | Marker


def encode(payload: bytes) -> bytes:
    """One pkt-line with `payload`, at most 65,516 bytes."""
    return b"%04x" % (len(payload) + 4) + payload


class PktParser:
    """Push parser: bytes in as they come, whole pkt-lines out."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Pkt]:
        """Return the pkt-lines that `data` completes. Raises: PktError."""
        self._buffer += data
        pkts: list[Pkt] = []
        start = 0
        buffer = self._buffer
        while len(buffer) - start >= 4:
            length = _length(buffer[start : start + 4])
            if length < 3:
                pkts.append(Marker(length))
                start += 4
            elif len(buffer) - start >= length:
                pkts.append(bytes(buffer[start + 4 : start + length]))
                start += length
            else:
                break
        del buffer[:start]
        return pkts

    @property
    def pending(self) -> bytes:
        """Bytes of a pkt-line that is not complete yet."""
        return bytes(self._buffer)

    def feed_until_flush(self, data: bytes) -> tuple[list[Pkt], bytes | None]:
        """Like `feed`, but stop behind a flush.

        Returns the pkt-lines and what follows the flush, or None for the latter while no flush
        has come. Raises: PktError.
        """
        self._buffer += data
        pkts: list[Pkt] = []
        while len(self._buffer) >= 4:
            length = _length(self._buffer[:4])
            if length < 3:
                del self._buffer[:4]
                pkts.append(Marker(length))
                if length == 0:
                    rest = bytes(self._buffer)
                    self._buffer.clear()
                    return pkts, rest
            elif len(self._buffer) >= length:
                pkts.append(bytes(self._buffer[4:length]))
                del self._buffer[:length]
            else:
                break
        return pkts, None


def _length(digits: bytearray) -> int:
    try:
        length = int(digits.decode("ascii"), 16)
    except ValueError:
        raise PktError("a pkt-line does not start with four hex digits") from None
    if digits.strip() != digits or b"+" in digits or b"-" in digits or b"_" in digits:
        raise PktError("a pkt-line does not start with four hex digits")
    if length == 3 or length > MAX_PKT:
        raise PktError(f"a pkt-line cannot have the length {length}")
    return length
