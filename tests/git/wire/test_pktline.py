"""pkt-line framing."""

from __future__ import annotations

import pytest
import trio

from artifactfs.errors import ObjectsMissing, ProtocolError
from artifactfs.git.wire.protocol import parse_sizes
from artifactfs.git.wire.sideband import SideBands, check_error, remote_error, side_band_data
from artifactfs.git.wire.transport import PacketReader
from artifactfs.pktline import DELIM, FLUSH, MAX_PAYLOAD, Packet, PacketDecoder, Special, encode

PACKETS: list[Packet] = [b"command=fetch\n", DELIM, b"x" * MAX_PAYLOAD, b"a", FLUSH]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000, 10**6])
def test_packets_survive_any_split(step: int) -> None:
    wire = encode([*PACKETS, Special.RESPONSE_END])
    decoder = PacketDecoder()
    found: list[Packet] = []
    for start in range(0, len(wire), step):
        found += decoder.feed(wire[start : start + step])
    assert found == [*PACKETS, Special.RESPONSE_END]
    assert decoder.pending == b""


def test_the_wire_format_is_that_of_the_specification() -> None:
    assert encode(["a\n", FLUSH, b"foobar\n", DELIM]) == b"0006a\n0000000bfoobar\n0001"


def test_an_incomplete_packet_is_pending() -> None:
    decoder = PacketDecoder()
    assert decoder.feed(b"0009ab") == []
    assert decoder.pending == b"0009ab"


@pytest.mark.parametrize("wire", [b"<!DOCTYPE html>", b"0003", b"-001abcd", b"+005a", b" 005a"])
def test_what_is_no_packet_is_an_error(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        PacketDecoder().feed(wire)


def test_too_long_a_packet_cannot_be_sent() -> None:
    with pytest.raises(ValueError):
        encode([b"x" * (MAX_PAYLOAD + 1)])


def test_side_bands() -> None:
    assert side_band_data(b"\x01PACK") == b"PACK"
    assert side_band_data(b"\x02Counting objects") == b""
    assert side_band_data(b"\x01") == b""
    assert side_band_data(b"") == b""
    with pytest.raises(ProtocolError, match="out of memory"):
        side_band_data(b"\x03fatal: out of memory\n")
    with pytest.raises(ProtocolError):
        side_band_data(b"\x07what")


def test_a_missing_object_is_named() -> None:
    oid = "1234567890" * 4
    with pytest.raises(ObjectsMissing) as caught:
        check_error(f"ERR upload-pack: not our ref {oid}\n".encode())
    assert caught.value.oids == {bytes.fromhex(oid)}


def test_other_errors_are_repeated_without_secrets() -> None:
    error = remote_error(b"no access to https://u:S3CRET@host/x")
    assert isinstance(error, ProtocolError)
    assert "no access" in error.message
    assert "S3CRET" not in error.message


def test_what_a_remote_says_cannot_act_on_a_terminal() -> None:
    said = b"\x1b]0;title\x07no \x1b[31mroom\x1b[0m\xc2\x9b2J\r\nask \x08me\x00"
    assert remote_error(said).message == "the remote refused: no room\n\nask me"


@pytest.mark.parametrize("size", [b"-1", b"1x", b"9" * 19, b"9" * 5_000])
def test_impossible_sizes(size: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_sizes([b"size\n", b"%b %b\n" % (b"0" * 40, size)])


def test_an_end_of_the_answer_within_a_section() -> None:
    class Answer:
        async def receive(self) -> bytes:
            return b"0009word\n0002"

        async def finish(self) -> None: ...

    async def main() -> None:
        with pytest.raises(ProtocolError, match="in the middle"):
            await PacketReader(Answer()).section()

    trio.run(main)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000, 10**6])
def test_data_is_passed_on_before_its_packet_is_complete(step: int) -> None:
    packets: list[Packet] = [b"\x01first", b"\x02progress", b"", b"\x01", b"\x01" + b"x" * 300]
    wire = encode([*packets, b"\x01last", FLUSH])
    bands = SideBands()
    pieces: list[bytes] = []
    for start in range(0, len(wire), step):
        end = min(start + step, len(wire))
        found, special = bands.feed(wire[start:end])
        pieces += found
        assert special is (FLUSH if end == len(wire) else None)
    assert b"".join(pieces) == b"first" + b"x" * 300 + b"last"
    found, _ = SideBands().feed(b"00ff\x01AB")
    assert found == [b"AB"]
    with pytest.raises(ProtocolError, match="no room"):
        SideBands().feed(encode([b"\x01data", b"\x03no room"]))
