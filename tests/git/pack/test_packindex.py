"""Pack index files: offsets beyond 2 GB, and look-ups."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from pathlib import Path

import pytest

from artifactfs.errors import CorruptData
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


@pytest.mark.parametrize("count", [1, 500])
def test_an_index_of_version_1_as_git_writes_it(tmp_path: Path, count: int) -> None:
    indexes = []
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path)], check=True)
    oids = [
        subprocess.run(
            ["git", "-C", str(tmp_path), "hash-object", "-w", "--stdin"],
            input=b"%d" % number,
            capture_output=True,
            check=True,
        ).stdout
        for number in range(count)
    ]
    for version in (1, 2):
        subprocess.run(
            ["git", "pack-objects", "-q", f"--index-version={version}", f"v{version}"],
            cwd=tmp_path,
            input=b"".join(oids),
            check=True,
            capture_output=True,
        )
        path = next(tmp_path.glob(f"v{version}-*.idx"))
        indexes.append(PackIndex(path))
        assert indexes[-1].size == path.stat().st_size
    one, two = indexes
    one.check()
    assert list(one.oids()) == list(two.oids()) and one.offsets() == two.offsets()
    assert one.pack_checksum == two.pack_checksum and len(one) == count
    assert all(one.offset(oid) == two.offset(oid) for oid in one.oids())
    assert one.lacking([bytes(20)]) == [bytes(20)]
    with pytest.raises(CorruptData):
        next(one.entries())
    path = next(tmp_path.glob("v1-*.idx"))
    damaged = bytearray(path.read_bytes())
    damaged[1030] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)
    with pytest.raises(CorruptData):
        PackIndex(path)


def test_an_index_of_version_1_with_offsets_beyond_2_gb(tmp_path: Path) -> None:
    offsets = [12, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
    oids = [bytes([n * 50]) * 20 for n in range(4)]
    fanout = [sum(oid[0] <= byte for oid in oids) for byte in range(256)]
    entries = [struct.pack(">I20s", at, oid) for at, oid in zip(offsets, oids, strict=True)]
    body = struct.pack(">256I", *fanout) + b"".join(entries) + b"c" * 20
    (tmp_path / "x.idx").write_bytes(body + hashlib.sha1(body).digest())
    index = PackIndex(tmp_path / "x.idx")
    assert index.offsets() == offsets
    assert [index.offset(oid) for oid in oids] == offsets
