"""Packs of a few blobs, made in the server's own process.

A reader that waits for one file is the most frequent fetch of all, and most of what it waits for
is the start of two git processes. For a few small blobs the pack (gitformat-pack(5)) is as quickly
written here: each object whole, none as a delta. Everything else is git's work.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pygit2

from artifactfs.pktline import FLUSH, MAX_PAYLOAD, encode
from artifactfs.server.wire.fetch_request import FetchRequest

MAX_BLOBS = 32
MAX_BYTES = 1024 * 1024
_LEVEL = 1
"""A third of the time of the usual level, for a tenth more bytes."""
_BLOB = 3
_UNDERSTOOD = frozenset(
    {
        b"ofs-delta",
        b"no-progress",
        b"thin-pack",
        b"include-tag",
        b"filter",
        b"object-format=sha1",
    }
)
_SIDEBAND = MAX_PAYLOAD - 1


def is_simple(request: FetchRequest) -> bool:
    """True for a whole request by protocol v2 for a few objects and no history."""
    return (
        request.version == 2
        and request.command == "fetch"
        and request.done
        and not request.history
        and 0 < request.want_count == len(request.wants) <= MAX_BLOBS
        and all(f in _UNDERSTOOD or f.startswith(b"agent=") for f in request.features)
    )


def is_blob(gitdir: Path, oid: bytes) -> bool:
    """True if a hex oid is a blob of the repository. Reads its header only."""
    try:
        kind, _ = pygit2.Odb(str(gitdir / "objects")).read_header(oid.decode())
    except (KeyError, ValueError, pygit2.GitError):
        return False
    return bool(kind == _BLOB)


def answer(gitdir: Path, wants: Sequence[bytes]) -> bytes | None:
    """The whole answer to such a request; None if git should give it. Runs in a thread.

    That is so if a want is missing, is no blob, or they are too large together.
    """
    odb = pygit2.Odb(str(gitdir / "objects"))
    oids = [want.decode() for want in dict.fromkeys(wants)]
    try:
        headers = [odb.read_header(oid) for oid in oids]
        if any(kind != _BLOB for kind, _ in headers):
            return None
        if sum(size for _, size in headers) > MAX_BYTES:
            return None
        pack = _pack([odb.read(oid)[1] for oid in oids])
    except (KeyError, ValueError, pygit2.GitError):
        return None
    return encode([b"packfile\n", *_banded(pack), FLUSH])


def _pack(blobs: Sequence[bytes]) -> bytes:
    parts = [b"PACK" + struct.pack(">II", 2, len(blobs))]
    for data in blobs:
        parts.append(_entry_header(len(data)))
        parts.append(zlib.compress(data, _LEVEL))
    body = b"".join(parts)
    return body + hashlib.sha1(body).digest()


def _entry_header(size: int) -> bytes:
    """Type and size of a blob: four bits of the size, then seven at a time."""
    byte = _BLOB << 4 | size & 0x0F
    size >>= 4
    header = bytearray()
    while size:
        header.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    header.append(byte)
    return bytes(header)


def _banded(pack: bytes) -> Iterator[bytes]:
    """The pack in side-band channel 1."""
    for start in range(0, len(pack), _SIDEBAND):
        yield b"\1" + pack[start : start + _SIDEBAND]
