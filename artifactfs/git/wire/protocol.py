"""Protocol version 2 (gitprotocol-v2(5)): requests to send, answers to read. No I/O here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from artifactfs import __version__
from artifactfs.errors import ProtocolError
from artifactfs.pktline import DELIM, FLUSH, Packet, encode

Oid = bytes

_SIZE_DIGITS = 18
"""Larger sizes fit in no 64 bits."""
_ALL_SIZES = re.compile(rb"(?:[0-9a-f]{40} [0-9]{1,%d}\n+)+" % _SIZE_DIGITS)
AGENT = f"git/artifactfs-{__version__}"


@dataclass(frozen=True, slots=True)
class ServerCapabilities:
    """What a version 2 server advertises: ``fetch=filter shallow`` is {"fetch": {…}}."""

    features: dict[str, frozenset[str]]

    def __contains__(self, command: str) -> bool:
        return command in self.features

    def supports(self, command: str, feature: str) -> bool:
        return feature in self.features.get(command, ())

    def common(self) -> list[str]:
        """The capability lines that go with every command."""
        lines = []
        if "agent" in self:
            lines.append(f"agent={AGENT}\n")
        if "object-format" in self:
            lines.append("object-format=sha1\n")
        return lines


@dataclass(frozen=True, slots=True)
class RefAdvertisement:
    """The refs of a remote.

    `head` is the branch that HEAD points at, as a full name, also when it is unborn; None when
    HEAD is detached or not told. `refs` has every ref by full name (and ``HEAD``) with the object
    it points at; `peeled` the object behind each annotated tag.
    """

    head: str | None
    refs: dict[str, Oid]
    peeled: dict[str, Oid] = field(default_factory=dict)


def advertised_version(first: Packet) -> int:
    """The protocol version that the first packet of an advertisement shows."""
    if first in (b"version 2\n", b"version 2"):
        return 2
    return 1 if first in (b"version 1\n", b"version 1") else 0


def parse_capabilities(packets: Iterable[Packet]) -> ServerCapabilities:
    """Read the packets after ``version 2``. Raises: ProtocolError for SHA-256 repositories."""
    features: dict[str, frozenset[str]] = {}
    for packet in packets:
        if not isinstance(packet, bytes):
            break
        name, _, value = packet.decode("utf-8", "replace").strip().partition("=")
        features[name] = frozenset(value.split())
    formats = features.get("object-format", frozenset({"sha1"}))
    if "sha1" not in formats:
        raise other_object_names()
    return ServerCapabilities(features)


def other_object_names() -> ProtocolError:
    """What is said of a remote with SHA-256."""
    return ProtocolError(
        "repositories with SHA-256 object names are not supported",
        hint="mount one with SHA-1 names: git init --object-format=sha1",
    )


def parse_v0_capabilities(first_ref: bytes) -> frozenset[str]:
    """The capabilities behind the NUL of the first ref line of versions 0 and 1."""
    return frozenset(first_ref.partition(b"\0")[2].decode("utf-8", "replace").split())


def command(name: str, arguments: Iterable[str], server: ServerCapabilities | None = None) -> bytes:
    """A request. Without `server` it is one that every version 2 server understands."""
    common = server.common() if server else []
    return encode([f"command={name}\n", *common, DELIM, *arguments, FLUSH])


def ls_refs_arguments(prefixes: Sequence[str], server: ServerCapabilities | None) -> list[str]:
    lines = ["peel\n", "symrefs\n"]
    if server and server.supports("ls-refs", "unborn"):
        lines.append("unborn\n")
    return lines + [f"ref-prefix {prefix}\n" for prefix in prefixes]


def parse_refs(packets: Iterable[Packet]) -> RefAdvertisement:
    """The answer to ``ls-refs``. Raises: ProtocolError."""
    head: str | None = None
    refs: dict[str, Oid] = {}
    peeled: dict[str, Oid] = {}
    for packet in packets:
        if not isinstance(packet, bytes):
            break
        text = packet.decode("utf-8", "surrogateescape").rstrip("\n")
        oid, _, rest = text.partition(" ")
        name, *attributes = rest.split(" ")
        for attribute in attributes:
            key, _, value = attribute.partition(":")
            if key == "symref-target" and name == "HEAD":
                head = value
            elif key == "peeled":
                peeled[name] = parse_oid(value)
        if oid != "unborn":
            refs[name] = parse_oid(oid)
    return RefAdvertisement(head, refs, peeled)


def fetch_arguments(
    wants: Iterable[Oid],
    *,
    names: Iterable[str] = (),
    haves: Iterable[Oid] = (),
    filter_spec: str | None = None,
    depth: int | None = None,
    shallow: Iterable[Oid] = (),
) -> Iterator[str]:
    """One round of ``fetch``: `done` is always said, so that the pack follows at once.

    `names` are refs whose objects are wanted (``ref-in-want``).
    """
    yield "no-progress\n"
    yield "ofs-delta\n"
    for oid in wants:
        yield f"want {oid.hex()}\n"
    for name in names:
        yield f"want-ref {name}\n"
    for oid in shallow:
        yield f"shallow {oid.hex()}\n"
    if depth is not None:
        yield f"deepen {depth}\n"
    if filter_spec is not None:
        yield f"filter {filter_spec}\n"
    for oid in haves:
        yield f"have {oid.hex()}\n"
    yield "done\n"


def object_info_arguments(oids: Iterable[Oid]) -> list[str]:
    return ["size\n", *[f"oid {oid.hex()}\n" for oid in oids]]


def parse_sizes(packets: Iterable[Packet]) -> dict[Oid, int]:
    """The answer to ``object-info``: bytes by oid, without those the server lacks.

    Raises: ProtocolError.
    """
    lines = list(itertools.takewhile(lambda packet: isinstance(packet, bytes), packets))
    if not lines or lines[0] not in (b"size\n", b"size"):
        raise ProtocolError("the remote's answer to object-info has no sizes")
    text = b"\n".join(cast(list[bytes], [*lines[1:], b""]))
    if _ALL_SIZES.fullmatch(text):  # of everything that was asked for: 0.5 us each, else 2
        words = text.split()
        names = bytes.fromhex(b"".join(words[::2]).decode("ascii"))
        oids = [names[at : at + 20] for at in range(0, len(names), 20)]
        return dict(zip(oids, map(int, words[1::2]), strict=True))
    sizes: dict[Oid, int] = {}
    for packet in lines[1:]:
        assert isinstance(packet, bytes)
        oid, _, size = packet.strip().partition(b" ")
        if not size:
            continue
        if not size.isdigit() or len(size) > _SIZE_DIGITS:
            raise ProtocolError("the remote's answer to object-info is malformed")
        sizes[parse_oid(oid.decode("ascii", "replace"))] = int(size)
    return sizes


def parse_oid(text: str) -> Oid:
    """20 bytes from 40 hex digits. Raises: ProtocolError."""
    try:
        oid = bytes.fromhex(text)
    except ValueError:
        oid = b""
    if len(oid) != 20 or len(text) != 40:
        raise ProtocolError("the remote sent something that is not an object name")
    return oid
