"""What a client asks upload-pack for: read off the request while it streams by.

gitprotocol-v2(5) for version 2, gitprotocol-pack(5) and gitprotocol-http(5) for the older ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from artifactfs.pktline import Packet, PacketDecoder, PktLineError, Special

_OID = re.compile(rb"[0-9a-f]{40}")


@dataclass(slots=True)
class FetchRequest:
    """A request to upload-pack, as far as it was read.

    `command` is ``ls-refs``, ``fetch`` or ``object-info``. `wants` are hex oids.
    `by_name`: it wants what refs point at (``want-ref``).
    `history`: the client told what it has, or asked to deepen.
    """

    version: int
    command: str | None = None
    wants: list[bytes] = field(default_factory=list)
    want_count: int = 0
    by_name: bool = False
    history: bool = False
    done: bool = False
    features: set[bytes] = field(default_factory=set)
    _parser: PacketDecoder = field(default_factory=PacketDecoder)

    def feed(self, data: bytes, *, keep: int) -> None:
        """Read on; remember at most `keep` oids. Raises: PktLineError."""
        for pkt in self._parser.feed(data):
            self._take(pkt, keep)

    def finish(self) -> None:
        """The body is over. Raises: PktLineError if it ends within a pkt-line."""
        if self._parser.pending:
            raise PktLineError("the request ends within a pkt-line")

    def _take(self, pkt: Packet, keep: int) -> None:
        if isinstance(pkt, Special):
            return
        line = pkt.rstrip(b"\n")
        word, _, rest = line.partition(b" ")
        if line.startswith(b"command="):
            self.command = line[8:64].decode("ascii", "replace")
        elif word in (b"want", b"oid"):
            self._want(rest, keep)
        elif word == b"want-ref":
            self.want_count += 1
            self.by_name = True
        elif word in (b"have", b"shallow", b"deepen", b"deepen-since", b"deepen-not"):
            self.history = True
        elif line == b"done":
            self.done = True
        elif len(self.features) < 64:
            self.features.add(word)

    def _want(self, rest: bytes, keep: int) -> None:
        if self.version < 2 and self.command is None:
            self.command = "fetch"
        oid = rest[:40]
        if not _OID.fullmatch(oid):
            raise PktLineError("a want is not an object name")
        self.want_count += 1
        if len(self.wants) < keep:
            self.wants.append(oid)
