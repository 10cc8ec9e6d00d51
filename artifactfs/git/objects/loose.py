"""Loose objects: one zlib stream each, ``kind size NUL content``."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

from artifactfs.errors import CorruptData
from artifactfs.git.pack.format import KIND_NAMES, Kind
from artifactfs.git.pack.reader import PIECE

_HEAD = 8192
"""Read at first: most loose objects are smaller, and a buffer of `PIECE` bytes is memory that the
kernel has to map, clear and unmap again, 35 µs for each."""


def open_loose(path: str) -> tuple[Kind, int, Iterator[bytes]] | None:
    """Kind, size and pieces of a loose object; None where it is not there or not readable."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the generator
    except OSError:
        return None
    inflater = zlib.decompressobj()
    try:
        head = inflater.decompress(file.read(_HEAD), 4096)
        words, nul, first = head.partition(b"\0")
        name, _, digits = words.partition(b" ")
        kind, size = KIND_NAMES[name], int(digits)
    except (zlib.error, KeyError, ValueError, OSError):
        file.close()
        return None
    if not nul:
        file.close()
        return None
    return kind, size, _loose_pieces(file, inflater, first, size)


def _loose_pieces(
    file: io.FileIO, inflater: zlib._Decompress, first: bytes, size: int
) -> Iterator[bytes]:
    with file:
        left = size - len(first)
        yield first
        pending = inflater.unconsumed_tail
        while not inflater.eof and left >= 0:
            pending = pending or file.read(PIECE)
            if not pending:
                raise CorruptData("a loose object is cut")
            try:
                piece = inflater.decompress(pending, min(PIECE, left + 1))
            except zlib.error as error:
                raise CorruptData(f"a loose object does not inflate: {error}") from None
            pending = inflater.unconsumed_tail
            left -= len(piece)
            yield piece
        if left:
            raise CorruptData("a loose object has another size than its header says")
