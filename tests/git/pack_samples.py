"""Packs for tests: made by real git from a small repository, or entry by entry by hand."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.parser import PackedObject, PackParser
from artifactfs.git.pack.store import PackStore, PackSummary

BIG = 3 << 20
"""Size of the big blob: above the size from which objects go through files."""


def git(directory: Path, *args: str, data: bytes | None = None) -> bytes:
    """Run git in `directory` and return what it printed."""
    command = ["git", "-C", str(directory), *args]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


@dataclass(frozen=True, repr=False)
class SampleRepository:
    """A repository with deltas, a big blob in two versions, odd names, and a tag."""

    path: Path
    contents: dict[bytes, tuple[str, bytes]]
    """oid: (kind, content) of every object, as git itself prints them."""

    @property
    def gitdir(self) -> Path:
        return self.path / ".git"

    def oids(self) -> list[bytes]:
        return sorted(self.contents)

    def pack(self, *options: str, oids: list[bytes] | None = None) -> bytes:
        """A pack of all objects (or of `oids`), as `git pack-objects` makes it."""
        names = "\n".join(oid.hex() for oid in oids or self.oids()) + "\n"
        return git(self.path, "pack-objects", "-q", "--stdout", *options, data=names.encode())

    def resolve(self, revision: str) -> bytes:
        return bytes.fromhex(git(self.path, "rev-parse", revision).decode())


def make_sample_repository(path: Path) -> SampleRepository:
    """Commit three versions of a tree."""
    rng = random.Random(7)
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    git(path, "config", "core.bigFileThreshold", "100m")
    git(path, "config", "uploadpack.allowFilter", "true")
    big = bytearray(rng.randbytes(BIG))
    lines = [f"line {number} {rng.random()}" for number in range(400)]
    for version in range(3):
        write_tree(path, version, bytes(big), lines)
        big[1000 * version : 1000 * version + 8] = b"modified"
        lines[50 * version] = f"changed in {version}"
        git(path, "add", "-A")
        git(path, "commit", "-q", "-m", f"Version {version}\n\nA body.")
    git(path, "tag", "-a", "-m", "A tag", "v1")
    listed = git(
        path, "cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype)"
    )
    contents = {}
    for line in listed.decode().splitlines():
        name, kind = line.split()
        contents[bytes.fromhex(name)] = (kind, git(path, "cat-file", kind, name))
    return SampleRepository(path, contents)


def write_tree(path: Path, version: int, big: bytes, lines: list[str]) -> None:
    (path / "big.bin").write_bytes(big)
    (path / "empty").write_bytes(b"")
    (path / "zeros").write_bytes(bytes(BIG))
    (path / "text").write_text("\n".join(lines))
    for number in range(20):
        folder = path / f"dir{number % 4}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        body = [f"{number}", *lines[: 10 * number], "end"]
        (folder / f"file{number}").write_text("\n".join(body))
    odd = os.fsencode(path) + b"/caf\xe9 \xff"
    with open(odd, "wb") as file:
        file.write(b"odd %d" % version)
    if not version:
        (path / "link").symlink_to("text")
    (path / "text").chmod(0o755)


def parse(pack: bytes, directory: Path, *, step: int = 4096, **options: Any) -> list[PackedObject]:
    """Feed a pack in pieces of `step` bytes and return all of its objects."""
    with open(directory / "parsed.pack", "w+b", buffering=0) as file:
        parser = PackParser(file.fileno(), spool_dir=directory, **options)
        try:
            done = list(_feed_all(parser, pack, step))
            parser.finish()
        finally:
            parser.close()
    return done


def _feed_all(parser: PackParser, pack: bytes, step: int) -> Iterator[PackedObject]:
    for start in range(0, len(pack), step):
        yield from parser.feed(pack[start : start + step])
        while parser.pending or parser.deferred:
            yield from parser.resolve_deferred() if parser.deferred else parser.feed(b"")


def content_of(item: PackedObject) -> bytes:
    if item.data is not None:
        assert item.spooled is None
        return item.data
    assert item.spooled is not None
    return item.spooled.read_bytes()


async def in_chunks(pack: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    """`pack` as it would come from the network."""
    for start in range(0, len(pack), size):
        await trio.lowlevel.checkpoint()
        yield pack[start : start + size]


def ingest(store: PackStore, pack: bytes) -> PackSummary:
    return trio.run(lambda: store.ingest(in_chunks(pack)))


def half_of(pack: bytes, failure: Exception | None) -> AsyncIterator[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        yield pack[: len(pack) // 2]
        await trio.lowlevel.checkpoint()
        if failure is None:
            await trio.sleep_forever()
        else:
            raise failure

    return chunks()


Ingest = Callable[[AsyncIterator[bytes]], Awaitable[object]]


def interrupt(ingest: Ingest, store: PackStore, pack: bytes, how: str) -> None:
    """Have `ingest` of `store` get half of `pack`; then it "breaks" or "is cancelled"."""
    if how == "breaks":
        with pytest.raises(ConnectionError):
            trio.run(ingest, half_of(pack, ConnectionError()))
    else:
        trio.run(_cancel, ingest, store, half_of(pack, None))


async def _cancel(ingest: Ingest, store: PackStore, chunks: AsyncIterator[bytes]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ingest, chunks)
        await trio.testing.wait_all_tasks_blocked()
        assert leftovers(store) != []
        nursery.cancel_scope.cancel()


def leftovers(store: PackStore) -> list[str]:
    return os.listdir(store.objects_dir / "tmp")


def damaged(pack: bytes, damage: str) -> bytes:
    """`pack`, not a valid one any more."""
    middle = len(pack) // 2
    return {
        "cut": pack[:-1],
        "flip": pack[:middle] + bytes([pack[middle] ^ 4]) + pack[middle + 1 :],
        "longer": pack + b"\0",
        "nothing": b"",
    }[damage]


class HandmadePack:
    """Builds a pack entry by entry, to make what git would not."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._count = 0

    def add(self, code: int, data: bytes, *, base: bytes = b"", size: int | None = None) -> int:
        """Append an entry; returns its offset. `size` is what its header claims."""
        offset = packformat.HEADER_BYTES + len(self._body)
        header = packformat.encode_entry(code, len(data) if size is None else size)
        self._body += header + base + zlib.compress(data)
        self._count += 1
        return offset

    def blob(self, data: bytes) -> int:
        return self.add(3, data)

    def ref_delta(self, base: bytes, delta: bytes) -> int:
        return self.add(packformat.REF_DELTA, delta, base=blob_id(base))

    def ofs_delta(self, base_offset: int, delta: bytes) -> int:
        here = packformat.HEADER_BYTES + len(self._body)
        distance = packformat.encode_base_distance(here - base_offset)
        return self.add(packformat.OFS_DELTA, delta, base=distance)

    def finish(self, count: int | None = None) -> bytes:
        header = struct.pack(">4sLL", b"PACK", 2, self._count if count is None else count)
        return sealed(header + bytes(self._body))


def sealed(body: bytes) -> bytes:
    """`body` with a valid checksum after it."""
    return body + hashlib.sha1(body).digest()


def blob_id(data: bytes) -> bytes:
    return packformat.object_id("blob", data)


def make_delta(base: bytes, pieces: list[tuple[int, int] | bytes]) -> bytes:
    """A delta from `pieces`: (offset, length) copied from the base, or bytes inserted."""
    out = bytearray()
    size = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            out += bytes([len(piece)]) + piece
            size += len(piece)
        else:
            offset, length = piece
            out += b"\xff" + struct.pack("<L", offset) + struct.pack("<L", length)[:3]
            size += length
    return _varint(len(base)) + _varint(size) + bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
