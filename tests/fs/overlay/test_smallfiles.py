"""Small written files share segments; whatever happens to them, programs see files."""

from __future__ import annotations

import mmap
import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from artifactfs.fs.inodes.inode import Extent, Row
from artifactfs.fs.overlay.database import Overlay
from artifactfs.fs.overlay.pending import decode, put_inode
from artifactfs.fs.overlay.schema import MIGRATIONS
from artifactfs.fs.overlay.smallfiles import LARGEST
from tests.fs.expectations import wait_for
from tests.fs.mounting import Mount


def segments(mount: Mount) -> list[Path]:
    return sorted((mount.layout / "small").iterdir(), key=lambda path: int(path.name))


def test_small_files_share_a_segment(mount: Mount) -> None:
    expected = {}
    for number in range(300):
        content = random.Random(number).randbytes(number * 7)
        (mount.path / f"new-{number}").write_bytes(content)
        expected[f"new-{number}"] = content
    assert mount.upper_files() == []
    assert len(segments(mount)) == 1
    for restart in (False, True):
        if restart:
            mount.restart(kill=True)
        for name, content in expected.items():
            assert (mount.path / name).read_bytes() == content
            assert (mount.path / name).stat().st_size == len(content)
    assert mount.ask("stats") == {
        "dirty_files": 300,
        "dirty_bytes": sum(map(len, expected.values())),
    }


def test_writing_pieces(mount: Mount) -> None:
    """Appended at once it stays small; in the middle, beyond its end or too long it does not."""
    path = mount.path / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"one,")
        file.write(b"two,")
        assert path.read_bytes() == b"one,two,"
    with open(path, "ab", buffering=0) as file:
        file.write(b"three")
    os.truncate(path, 7)
    assert path.read_bytes() == b"one,two"
    assert mount.upper_files() == []
    (mount.path / "other").write_bytes(b"comes after it in the segment")
    with open(path, "ab", buffering=0) as file:
        file.write(b",four")
    assert len(mount.upper_files()) == 1
    for name, offset in (("middle", 2), ("hole", 50), ("long", LARGEST - 3)):
        new = mount.path / name
        new.write_bytes(b"0123456789")
        with open(new, "r+b") as file:
            file.seek(offset)
            file.write(b"abcdef")
        expected = bytearray(b"0123456789".ljust(offset, b"\0"))
        expected[offset : offset + 6] = b"abcdef"
        assert new.read_bytes() == expected
    os.truncate(mount.path / "other", 100)
    mount.restart(kill=True)
    assert path.read_bytes() == b"one,two,four"
    assert (mount.path / "middle").read_bytes() == b"01abcdef89"
    assert (mount.path / "other").read_bytes() == b"comes after it in the segment".ljust(100, b"\0")
    assert len(mount.upper_files()) == 5


def test_emptied_files_have_no_file(mount: Mount) -> None:
    """As shells and editors do it: `O_TRUNC`, then all of the content."""
    (mount.path / "README").write_text("short\n")
    (mount.path / "README").write_text("other\n")
    assert mount.upper_files() == []
    (mount.path / "large").write_bytes(b"x" * (LARGEST + 1))
    assert len(mount.upper_files()) == 1
    mount.restart(kill=True)
    assert (mount.path / "README").read_text() == "other\n"


def test_times_of_small_files(mount: Mount) -> None:
    path = mount.path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(10**18, 10**18 + 7))
    assert path.stat().st_mtime_ns == 10**18 + 7
    with open(path, "ab") as file:
        file.write(b"more")
    written = path.stat()
    assert written.st_mtime_ns == written.st_ctime_ns > 10**18 + 7
    with open(path, "r+b") as file:  # it gets a file of its own
        file.seek(3)
        file.write(b"x")
    assert path.stat().st_mtime_ns >= written.st_mtime_ns
    os.utime(path, ns=(10**18, 10**18 + 9))
    mount.restart(kill=True)
    assert path.stat().st_mtime_ns == 10**18 + 9


def test_what_was_seen_changes_with_a_new_time(mount: Mount) -> None:
    """Else git would take the second content for the first: the clock of files has 4 ms."""
    path = mount.path / "file"
    for number in range(100):
        path.write_bytes(b"%05d" % number)
        seen = path.stat()
        path.write_bytes(b"%05d" % -number)
        assert path.stat().st_mtime_ns > seen.st_mtime_ns
        assert path.stat().st_ctime_ns > seen.st_ctime_ns
    (mount.path / "later").touch()
    assert (mount.path / "later").stat().st_mtime_ns >= path.stat().st_mtime_ns


def collected(mount: Mount) -> int:
    mount.ask("collect")
    return len(segments(mount))


def test_dead_segments_are_removed(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(segment_bytes=20_000)
    for number in range(100):
        (mount.path / f"gone-{number}").write_bytes(b"%d" % number * 500)
    (mount.path / "kept").write_bytes(b"kept" * 100)
    many = len(segments(mount))
    for number in range(100):
        (mount.path / f"gone-{number}").unlink()
    assert many == 5
    wait_for(lambda: collected(mount) <= 2)  # when the kernel has forgotten them
    mount.restart(kill=True)
    assert (mount.path / "kept").read_bytes() == b"kept" * 100


def collected_bytes(mount: Mount) -> int:
    mount.ask("collect")
    return sum(path.stat().st_size for path in segments(mount))


@pytest.mark.parametrize("meanwhile", [False, True], ids=["afterwards", "and meanwhile"])
@pytest.mark.parametrize("files", [90, 200, 300])
def test_sparse_segments_are_cleared(
    new_mount: Callable[..., Mount], files: int, meanwhile: bool
) -> None:
    """What is left of them moves on: bytes, times and open files stay as they were."""
    size = 20_000  # of a segment, and what may always be wasted
    mount = new_mount().start(segment_bytes=size)
    expected = {}
    written = 0
    for number in range(files):
        path = mount.path / f"file-{number}"
        written += path.write_bytes(b"%d" % number * 300)
        if number % 10:
            path.unlink()
        else:
            os.utime(path, ns=(10**18, 10**18 + number))
            expected[path] = path.read_bytes(), path.stat()
        if meanwhile and number % 70 == 69:  # as it happens by itself while a program writes
            mount.ask("collect")
    live = sum(len(content) for content, _ in expected.values())
    kept = live + max(size, live) + size  # named, wasted, and the segment that is written to
    with open(mount.path / "file-0", "rb") as file:
        wait_for(lambda: collected_bytes(mount) <= kept)  # it begins some time after the mount
        assert file.read() == b"0" * 300
    assert written > kept or files == 90
    for restart in (False, True):
        if restart:
            mount.restart(kill=True)
        for path, (content, status) in expected.items():
            assert path.read_bytes() == content
            found = path.stat()
            assert (found.st_ino, found.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


def test_an_open_file_without_a_name_keeps_its_content(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(segment_bytes=5_000)
    (mount.path / "open").write_bytes(b"still here")
    with open(mount.path / "open", "r+b", buffering=0) as file:
        os.unlink(mount.path / "open")
        for number in range(20):
            (mount.path / f"{number}").write_bytes(b"x" * 1_000)
            (mount.path / f"{number}").unlink()
        mount.ask("collect")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # its pages
        assert file.read() == b"still here"
        file.write(b", and more")
        file.seek(0)
        assert file.read() == b"still here, and more"
    wait_for(lambda: mount.upper_files() == [])
    wait_for(lambda: collected(mount) <= 1)


def test_what_did_not_reach_the_disk_is_empty(mount: Mount) -> None:
    """As after power loss without fsync: the log was on the disk, the segment was not."""
    (mount.path / "whole").write_bytes(b"before")
    (mount.path / "lost").write_bytes(b"content")
    mount.kill()
    (segment,) = segments(mount)
    os.truncate(segment, 9)
    mount.start(boot=1)
    assert (mount.path / "whole").read_bytes() == b"before"
    assert (mount.path / "lost").read_bytes() == b""
    assert "lost with the power" in mount.stderr()
    (mount.path / "lost").write_bytes(b"again")
    mount.restart(kill=True)
    assert (mount.path / "lost").read_bytes() == b"again"
    segment.unlink()
    mount.kill()
    mount.start(boot=2)
    assert (mount.path / "whole").read_bytes() == b""
    mount.restart(kill=True)
    assert (mount.path / "whole").read_bytes() == b""
    assert mount.ask("damage") == []


def test_numbers_of_segments_are_never_used_twice(mount: Mount) -> None:
    seen: set[str] = set()
    for number in range(4):
        (mount.path / "file").write_bytes(b"%d" % number)
        new = {path.name for path in segments(mount)} - seen
        assert len(new) == 1
        seen |= new
        mount.ask("collect")
        mount.kill()
        for path in segments(mount):
            path.unlink()
        mount.start()


def test_a_database_from_before_is_migrated(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    (mount.path / "large").write_bytes(b"x" * 100_000)
    mount.stop()
    database = mount.database()
    with closing(sqlite3.connect(database)) as connection:
        for column in ("segment", "segment_offset", "segment_size", "segment_crc"):
            connection.execute(f"ALTER TABLE inodes DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 2")
        connection.commit()
    with monkeypatch.context() as patch:
        patch.setattr("artifactfs.fs.overlay.database.MIGRATIONS", MIGRATIONS[:2])
        overlay = Overlay(database)
        with pytest.raises(OSError, match="no such column: segment"):
            overlay.rows_in(1)
        overlay.close()
    mount.start()
    assert (mount.path / "large").read_bytes() == b"x" * 100_000
    (mount.path / "small").write_bytes(b"small")
    mount.restart(kill=True)
    assert (mount.path / "small").read_bytes() == b"small"


@pytest.mark.parametrize("oid", [None, bytes(range(20))])
@pytest.mark.parametrize("target", [None, b"a target"])
@pytest.mark.parametrize("extent", [None, Extent(0, 0, 0), Extent(2**40, 2**33, LARGEST)])
def test_rows_are_written_down_whole(
    oid: bytes | None, target: bytes | None, extent: Extent | None
) -> None:
    row = Row(0o100644, 1, 2, 3, 4, 5, 6, 7, oid, extent is not None, target, 8, extent)
    edit = put_inode(77, row)
    following = put_inode(78, row)
    assert list(decode(edit[4] + following[4])) == [edit, following]


def test_a_wrong_count_loses_nothing(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(segment_bytes=5_000)
    for number in range(20):
        (mount.path / f"{number}").write_bytes(b"%d" % number * 500)
    before = segments(mount)
    mount.ask("miscount")
    mount.ask("collect")
    assert segments(mount) == before
    assert "counted wrong" in mount.stderr()
    for number in range(20):
        assert (mount.path / f"{number}").read_bytes() == b"%d" % number * 500
        (mount.path / f"{number}").unlink()
    wait_for(lambda: collected(mount) <= 1)  # when the kernel has forgotten them


def test_more_files_in_use_than_are_kept_open_below(mount: Mount) -> None:
    """Descriptors of upper files are kept for the last 256 that were used."""
    top = mount.path / "use"
    top.mkdir()
    files = [open(top / f"{number}", "w+b") for number in range(600)]  # noqa: SIM115
    for turn in range(3):
        for number, file in enumerate(files):
            file.seek(0, os.SEEK_END)
            file.write(b"%d %d\n" % (number, turn))
            file.flush()
    for number in range(0, 600, 2):
        (top / f"{number}").unlink()
    for number, file in enumerate(files):
        expected = b"".join(b"%d %d\n" % (number, turn) for turn in range(3))
        assert os.pread(file.fileno(), 100, 0) == expected
        with mmap.mmap(file.fileno(), 0) as view:
            assert view[:] == expected
        assert os.fstat(file.fileno()).st_size == len(expected)
        file.close()
    assert len(os.listdir(top)) == 300
