"""What a push asked for and what became of it, read off both streams of receive-pack.

gitprotocol-pack(5): the commands before the pack, and the report-status (v1 and v2) after it,
which comes in side-band channel 1 where the client asked for side-band-64k.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from artifactfs.pktline import PacketDecoder, PktLineError, Special

_COMMAND = re.compile(rb"([0-9a-f]{40}) ([0-9a-f]{40}) ([^\0\n]+)", re.DOTALL)
_MAX_COMMANDS = 10_000
ZERO = "0" * 40


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One ref: `before` and `after` are hex oids, zeros for absent."""

    ref: str
    before: str
    after: str


class PushCommands:
    """Reads the ref updates at the head of a push."""

    def __init__(self) -> None:
        self.updates: list[RefUpdate] = []
        self.capabilities: frozenset[bytes] = frozenset()
        self.complete = False
        self._parser = PacketDecoder()

    def feed(self, data: bytes) -> None:
        """Read on until the flush behind the commands. Raises: PktLineError."""
        if self.complete:
            return
        pkts, rest = self._parser.feed_until_flush(data)
        for pkt in pkts:
            if isinstance(pkt, Special):
                continue
            if pkt.startswith((b"shallow ", b"push-cert")):
                continue
            self._take(pkt)
        self.complete = rest is not None

    def finish(self) -> None:
        """The request is over. Raises: PktLineError if the commands were cut short."""
        if not self.complete:
            raise PktLineError("the push ends within its commands")

    def _take(self, pkt: bytes) -> None:
        line, _, capabilities = pkt.partition(b"\0")
        match = _COMMAND.fullmatch(line.rstrip(b"\n"))
        if match is None or len(self.updates) >= _MAX_COMMANDS:
            raise PktLineError("a push command is malformed")
        before, after, ref = match.groups()
        if not self.updates:
            self.capabilities = frozenset(capabilities.split())
        self.updates.append(
            RefUpdate(ref.decode("utf-8", "surrogateescape"), before.decode(), after.decode())
        )

    @property
    def sideband(self) -> bool:
        return b"side-band-64k" in self.capabilities


class PushReport:
    """Reads the report of receive-pack."""

    def __init__(self, *, sideband: bool) -> None:
        self.unpack_error: str | None = None
        self.accepted: set[str] = set()
        self.refused: dict[str, str] = {}
        self._outer = PacketDecoder() if sideband else None
        self._inner = PacketDecoder()

    def feed(self, data: bytes) -> None:
        """Read on; output that is no report (an old protocol's) is passed over."""
        try:
            if self._outer is None:
                self._report(data)
                return
            for pkt in self._outer.feed(data):
                if isinstance(pkt, bytes) and pkt[:1] == b"\1":
                    self._report(pkt[1:])
        except PktLineError:
            return

    def _report(self, data: bytes) -> None:
        for pkt in self._inner.feed(data):
            if isinstance(pkt, Special):
                continue
            line = pkt.rstrip(b"\n").decode("utf-8", "surrogateescape")
            word, _, rest = line.partition(" ")
            if word == "unpack" and rest != "ok":
                self.unpack_error = rest
            elif word == "ok":
                self.accepted.add(rest)
            elif word == "ng":
                ref, _, reason = rest.partition(" ")
                self.refused[ref] = reason

    def succeeded(self, commands: PushCommands) -> list[RefUpdate]:
        """The updates that were made."""
        if not commands.capabilities & {b"report-status", b"report-status-v2"}:
            return list(commands.updates)
        return [update for update in commands.updates if update.ref in self.accepted]
