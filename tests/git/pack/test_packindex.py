"""Pack index files: offsets beyond 2 GB, and look-ups."""

from __future__ import annotations

from pathlib import Path

from artifactfs.git.pack.index import PackIndex, encode_index
from artifactfs.git.pack.parser import PackEntry
from tests.git.pack_samples import blob_id


def test_an_index_with_large_offsets(tmp_path: Path) -> None:
    offsets = [12, (1 << 31) - 1, 1 << 31, (1 << 32) + 5, 1 << 40]
    entries = [PackEntry(bytes([n * 50]) * 20, n, at) for n, at in enumerate(offsets)]
    (tmp_path / "x.idx").write_bytes(encode_index(reversed(entries), b"c" * 20))
    index = PackIndex(tmp_path / "x.idx")
    index.check()
    assert list(index.entries()) == entries
    assert [index.offset(entry.oid) for entry in entries] == offsets
    assert index.offset(b"\x01" * 20) is None
    assert index.pack_checksum == b"c" * 20


def test_a_look_up_among_many(tmp_path: Path) -> None:
    oids = sorted(blob_id(b"%d" % number) for number in range(30_000))
    entries = [PackEntry(oid, 0, 12 + number) for number, oid in enumerate(oids)]
    (tmp_path / "x.idx").write_bytes(encode_index(entries, bytes(20)))
    index = PackIndex(tmp_path / "x.idx")
    assert all(index.offset(entry.oid) == entry.offset for entry in entries[::7])
    assert not any(index.offset(oid[:19] + b"\0") for oid in oids[::7] if oid[19])
    assert index.lacking(oids) == []
    assert index.has_prefix(oids[0].hex()[:12]) and not index.has_prefix("f" * 39 + "0")
    assert list(index.oids()) == oids


def test_oids_that_are_not_even(tmp_path: Path) -> None:
    """As somebody may choose them."""
    oids = [bytes([7]) + number.to_bytes(19, "big") for number in range(5_000)]
    oids += [bytes([7]) + b"\xff" * 15 + number.to_bytes(4, "big") for number in range(5_000)]
    entries = [PackEntry(oid, 0, 12 + number) for number, oid in enumerate(oids)]
    (tmp_path / "x.idx").write_bytes(encode_index(entries, bytes(20)))
    index = PackIndex(tmp_path / "x.idx")
    assert [index.offset(oid) for oid in oids[::37]] == [entry.offset for entry in entries[::37]]
    assert index.offset(bytes([7]) + b"\x80" * 19) is None
