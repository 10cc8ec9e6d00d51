"""Large blobs of the cache that the disk lost or changed: never served, and had again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from artifactfs.damage import DamageReport
from artifactfs.git.pack.format import object_id
from artifactfs.hydration.local import checksums
from artifactfs.hydration.local.blobs import FileBlob
from artifactfs.hydration.local.checksums import BLOCK, BlobDamaged, sums_path
from artifactfs.hydration.local.large_blobs import LargeBlobStore

CONTENT = os.urandom(3 * BLOCK + 1000)
OID = object_id("blob", CONTENT)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A store that has `OID`."""
    store = LargeBlobStore(tmp_path / "blobs")
    temporary = store.temporary()
    temporary.write_bytes(CONTENT)
    store.adopt_temporary(OID, temporary)
    trio.run(store.publish, OID)
    return store.directory


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_every_part_of_a_sound_file_is_right(directory: Path) -> None:
    blob = LargeBlobStore(directory).open(OID)
    assert isinstance(blob, FileBlob)
    for offset in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, len(CONTENT) - 1, len(CONTENT)):
        for size in (1, 5, BLOCK, BLOCK + 1, 10 * BLOCK):
            assert blob.read(offset, size) == CONTENT[offset : offset + size]
    blob.close()


@pytest.mark.parametrize("at", [0, BLOCK, len(CONTENT) - 1])
def test_a_flipped_bit_is_found_by_whoever_reads_it(directory: Path, at: int) -> None:
    report = DamageReport()
    store = LargeBlobStore(directory, report)
    path = store.path_of(OID)
    flip(path, at)
    blob = store.open(OID)
    assert isinstance(blob, FileBlob)
    elsewhere = (at // BLOCK + 1) % 4 * BLOCK
    assert blob.read(elsewhere, 100) == CONTENT[elsewhere : elsewhere + 100]
    with pytest.raises(BlobDamaged) as caught:
        blob.read(at, 1)
    assert caught.value.errno == errno.EIO
    assert store.open(OID) is None
    assert not path.exists()
    assert not sums_path(path).exists()
    assert [(damage.file, damage.mended) for damage in report.entries()] == [(str(path), True)]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, BLOCK),
    "longer": lambda path: os.truncate(path, len(CONTENT) + 1),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_file_of_another_size_is_not_opened(directory: Path, how: str) -> None:
    report = DamageReport()
    store = LargeBlobStore(directory, report)
    opened = store.open(OID)
    assert isinstance(opened, FileBlob)
    assert opened.read(0, len(CONTENT)) == CONTENT
    DAMAGES[how](store.path_of(OID))
    assert store.open(OID) is None
    assert len(report.entries()) == 1
    if how != "longer":
        with pytest.raises(BlobDamaged):
            opened.read(BLOCK, BLOCK)


@pytest.mark.parametrize("damaged", [True, False])
@pytest.mark.parametrize("how", ["missing", "empty", "bit", "cut"])
def test_without_checksums_the_whole_is_compared_with_its_name(
    directory: Path, damaged: bool, how: str
) -> None:
    store = LargeBlobStore(directory)
    path = store.path_of(OID)
    sums = sums_path(path)
    if how == "missing":
        sums.unlink()
    elif how == "bit":
        flip(sums, 20)
    else:
        os.truncate(sums, 0 if how == "empty" else 20)
    if damaged:
        flip(path, 5)
    assert store.open(OID) == len(CONTENT)
    assert store.verify(OID) is not damaged
    assert path.exists() is not damaged
    for again in (store, LargeBlobStore(directory)):
        blob = again.open(OID)
        assert isinstance(blob, FileBlob) is not damaged
        if isinstance(blob, FileBlob):
            assert blob.read(0, 1 << 30) == CONTENT


def test_what_nobody_reads_is_scrubbed_now_and_then(directory: Path) -> None:
    report = DamageReport()
    store = LargeBlobStore(directory, report)
    path = store.path_of(OID)
    flip(path, 2 * BLOCK)
    assert store.scrub(1 << 30, 3600) == 0  # its checksums were made a moment ago
    os.utime(sums_path(path), (1, 1))
    assert store.scrub(1 << 30, 3600) == len(CONTENT)
    assert not path.exists()
    assert report.entries()[0].mended
    assert store.scrub(1 << 30, 3600) == 0


def test_checksums_go_with_their_file(directory: Path) -> None:
    store = LargeBlobStore(directory)
    path = store.path_of(OID)
    assert store.total_bytes() == len(CONTENT)
    assert store.evict(1) == len(CONTENT)
    assert list(path.parent.iterdir()) == []
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        checksums.save(path, checksums.make(file.fileno()))
    path.unlink()
    store.remove_stale()
    assert list(path.parent.iterdir()) == []
