"""The log of changes, and the overlay that is made of it and a database."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from artifactfs.fs.inodes import seals
from artifactfs.fs.inodes.inode import Row
from artifactfs.fs.overlay.commitlog import CommitLog
from artifactfs.fs.overlay.database import FOLD_AT, Overlay, create_overlay, read_base
from artifactfs.fs.overlay.pending import (
    ABSENT,
    Edit,
    decode,
    delete_meta,
    delete_xattr,
    drop_inode,
    put_dirent,
    put_inode,
    put_meta,
    put_xattr,
)
from artifactfs.fs.overlay.schema import PAGE_SIZE
from tests.fs.mounting import Mount, MountFailed

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def row(mode: int = FILE, **more: Any) -> Row:
    return Row(mode, 1, 2, 1, 0, -3, 4, 5 << 40, **more)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "overlay.db"
    create_overlay(path, [put_inode(1, row(DIRECTORY))])
    return path


def replayed(database: Path, folded: int = 0) -> list[bytes]:
    return list(CommitLog(database, folded).replay())


def segments(database: Path) -> list[Path]:
    return sorted(database.parent.glob("overlay.db-changes-*"))


def test_every_edit_reads_as_it_was_written() -> None:
    edits = [
        put_inode(1 << 62, row(oid=b"\1" * 20, base_time_ns=9)),
        put_inode(7, row(LINK, target=b"to\0" * 1000)),
        put_inode(8, row(has_data=True)),
        drop_inode(9),
        put_dirent(1, b"\xff" * 255, 8),
        put_dirent(1, b"gone", 0),
        put_dirent(1, b"never", ABSENT),
        put_meta("next_ino", 1 << 60),
        put_meta("closed", b"a\0b" * 100_000),
        delete_meta("closed"),
        put_xattr(8, b"user.x", b""),
        put_xattr(8, b"user.y", b"\0" * 70_000),
        delete_xattr(8, b"user.x"),
    ]
    assert list(decode(b"".join(edit[4] for edit in edits))) == edits


def test_a_record_that_is_not_whole_ends_the_log(database: Path) -> None:
    log = CommitLog(database, 0)
    for payload in (b"one", b"two", b"three"):
        log.append(payload)
    log.close(folded=False)
    (segment,) = segments(database)
    whole = segment.read_bytes()
    for size in range(len(whole) - 20, len(whole)):
        segment.write_bytes(whole[:size])
        assert replayed(database) == [b"one", b"two"]
    segment.write_bytes(whole[:-3] + b"\0\0\0")
    log = CommitLog(database, 0)
    assert list(log.replay()) == [b"one", b"two"]
    log.append(b"other")
    log.close(folded=False)
    assert replayed(database) == [b"one", b"two", b"other"]
    assert replayed(database, 1) == [b"two", b"other"]
    assert replayed(database, 7) == []


def test_after_a_loss_of_power_nothing_beyond_a_gap_is_applied(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CommitLog(database, 0)
    log.begin()
    for number in range(6):
        if number % 2 == 0:
            log.begin_segment()
        log.append(b"%d" % number)
    log.close(folded=False)
    middle = segments(database)[1]
    middle.write_bytes(middle.read_bytes()[:-1])
    assert replayed(database) == [b"0", b"1", b"2", b"4", b"5"]
    monkeypatch.setattr(seals, "boot_id", lambda: b"another boot    ")
    log = CommitLog(database, 0)
    assert list(log.replay()) == [b"0", b"1", b"2"]
    assert log.gaps == []
    log.append(b"new")
    log.append(b"newer")
    log.close(folded=False)
    assert replayed(database) == [b"0", b"1", b"2", b"new", b"newer"]


@pytest.mark.parametrize("lost", [(2, 3), (4, 6), (1, 2), (9, 10), (3, 10)])
@pytest.mark.parametrize("how", ["bit of the payload", "bit of the header", "zeros", "cut"])
def test_what_was_synced_and_is_damaged_is_missed(
    database: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, int], how: str
) -> None:
    log = CommitLog(database, 0)
    log.begin()
    records = [b"record %d" % number for number in range(10)]
    for record in records:
        log.append(record)
    log.sync()
    log.close(folded=False)
    (segment,) = segments(database)
    content = bytearray(segment.read_bytes())
    length = len(content) // 10
    first, last = lost[0] * length, lost[1] * length
    if how == "cut":
        del content[first:]
    elif how == "zeros":
        content[first:last] = bytes(last - first)
    else:
        for at in range(first, last, length):
            content[at + (9 if "header" in how else 20)] ^= 4
    segment.write_bytes(content)
    monkeypatch.setattr(seals, "boot_id", lambda: b"another boot    ")
    log = CommitLog(database, 0)
    if "bit" in how:
        assert list(log.replay()) == records
        assert log.set_right == [segment]
        assert log.gaps == []
        return
    end = 10 if how == "cut" else lost[1]
    assert list(log.replay()) == records[: lost[0]] + records[end:]
    assert [(gap.first, gap.last) for gap in log.gaps] == [(lost[0] + 1, end)]


def test_a_damaged_log_is_set_aside_and_nothing_is_removed(mount: Mount) -> None:
    for number in range(20):
        with open(mount.path / f"n{number:02}", "wb") as file:
            file.write(b"%02d" % number * (30_000 if number % 2 else 50))
            os.fsync(file.fileno())
    mount.kill()
    (segment,) = mount.layout.glob("overlay.db-changes-*")
    content = segment.read_bytes()
    at = content.index(b"n07")
    segment.write_bytes(content[:at] + b"no name" + content[at + 7 :])
    orphan = mount.layout / "upper" / "aa" / "87041"
    orphan.parent.mkdir()
    orphan.write_bytes(b"what a lost change has named")
    damaged, uppers = segment.read_bytes(), len(mount.upper_files())
    small = sorted(path.read_bytes() for path in (mount.layout / "small").iterdir())
    for _ in range(2):
        mount.start()
        mount.ask("settle")
        aside = mount.layout / segment.name.replace("changes", "damaged-changes")
        assert aside.read_bytes() == damaged
        assert [damage["file"] for damage in mount.ask("damage")] == [str(aside)]
        for number in (*range(7), *range(8, 20)):
            content = b"%02d" % number * (30_000 if number % 2 else 50)
            assert (mount.path / f"n{number:02}").read_bytes() == content
        os.unlink(mount.path / "n04")
        (mount.path / "n04").write_bytes(b"04" * 50)
        mount.ask("collect")
        assert len(mount.upper_files()) == uppers
        assert set(small) <= {path.read_bytes() for path in (mount.layout / "small").iterdir()}
        mount.kill()
    aside.unlink()
    mount.start()
    while orphan.exists():
        assert (mount.path / "n09").read_bytes() == b"09" * 30_000


def test_every_single_bit_of_the_log_can_be_set_right(database: Path) -> None:
    log = CommitLog(database, 0)
    log.begin()
    records = [b"a record of a change, number %d" % number for number in range(3)]
    for record in records:
        log.append(record)
    log.sync()
    log.close(folded=False)
    (segment,) = segments(database)
    content = segment.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        segment.write_bytes(damaged)
        log = CommitLog(database, 0)
        assert list(log.replay()) == records, at
        assert log.gaps == []


def test_only_segments_that_the_database_contains_are_dropped(database: Path) -> None:
    log = CommitLog(database, 0)
    for number in range(6):
        if number % 2 == 0:
            log.begin_segment()
        log.append(b"%d" % number)
    log.drop(3)
    assert [path.name for path in segments(database)] == [
        "overlay.db-changes-3",
        "overlay.db-changes-5",
    ]
    log.sync()
    log.drop(6)
    assert [path.name for path in segments(database)] == ["overlay.db-changes-5"]
    log.close(folded=True)
    assert segments(database) == []


def test_a_write_that_fell_short_is_written_over(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CommitLog(database, 0)
    log.append(b"before")
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:-2], at))
    with pytest.raises(OSError, match="No space"):
        log.append(b"a long one that does not fit")
    monkeypatch.undo()
    assert replayed(database) == [b"before"]
    log.append(b"after")
    log.close(folded=False)
    assert replayed(database) == [b"before", b"after"]


def test_a_log_without_its_database_is_refused(mount: Mount) -> None:
    """A database from a backup, with a log that goes on much later."""
    (mount.path / "first").touch()
    mount.stop()
    database = mount.layout / "overlay.db"
    shutil.copy(database, mount.directory / "backup")
    mount.start()
    (mount.path / "second").touch()
    mount.restart()
    (mount.path / "third").touch()
    mount.kill()
    shutil.copy(mount.directory / "backup", database)
    Path(f"{database}-wal").unlink()
    before = [path.read_bytes() for path in segments(database)]
    with pytest.raises(MountFailed, match=r"overlay database .*overlay\.db is older than its log"):
        mount.start()
    assert [path.read_bytes() for path in segments(database)] == before


def test_changes_that_are_only_in_the_log_count_as_local(database: Path) -> None:
    overlay = Overlay(database)
    overlay.apply([put_meta("base_commit", b"\7" * 20)])
    overlay.apply([put_inode(20, row()), put_dirent(1, b"made", 20)])
    assert read_base(database) == (1, b"\7" * 20)
    overlay.close()
    assert read_base(database) == (1, b"\7" * 20)


def random_edits(generator: random.Random, overlay: Overlay) -> list[Edit]:
    """One change that leaves no dirent without a row; the kind of an inode never changes."""
    ino, parent = generator.randint(2, 9), generator.randint(1, 4)
    name = generator.choice([b"a", b"b", b"c"])
    mode = DIRECTORY if ino < 5 else FILE
    put = put_inode(ino, row(mode, has_data=generator.random() < 0.5))
    choices = [
        [put],
        [put, put_dirent(parent, name, ino)],
        [put, put_dirent(parent, name, ino), put_dirent(1, b"d", ino)],
        [put_dirent(parent, name, 0)],
        [put_dirent(parent, name, ABSENT)],
        [drop_inode(ino), *(put_dirent(*place, ABSENT) for place in overlay.links(ino))],
        [put_xattr(ino, name, b"%d" % generator.randint(0, 9))],
        [delete_xattr(ino, name)],
        [put_meta("next_ino", generator.randint(1, 99))],
    ]
    return generator.choice(choices)


def answers(overlay: Overlay) -> list[Any]:
    found: list[Any] = [overlay.inodes_with_data()]
    for ino in range(1, 10):
        links = sorted(overlay.links(ino))
        found += [overlay.row(ino), overlay.names(ino), links, overlay.xattrs(ino)]
        found += [sorted(overlay.subdirectories(ino)), overlay.count_directories(ino)]
        rows = overlay.rows_in(ino)
        found.append(all(overlay.row(number) == value for number, value in rows.items()))
    return found


def test_what_is_pending_answers_like_what_is_stored(tmp_path: Path) -> None:
    """Random changes: one overlay takes each into its database at once, one seldom, and one is
    left without being closed from time to time, as by SIGKILL."""
    generator = random.Random(5)
    overlays = []
    for name in ("at-once", "seldom", "killed"):
        (tmp_path / name).mkdir()
        create_overlay(tmp_path / name / "overlay.db", [put_inode(1, row(DIRECTORY))])
        overlays.append(Overlay(tmp_path / name / "overlay.db"))
    abandoned = []
    for number in range(1500):
        edits = random_edits(generator, overlays[0])
        for overlay in overlays:
            overlay.apply(edits)
        assert overlays[0].fold()
        expected = answers(overlays[0])
        assert answers(overlays[1]) == expected, f"after change {number}"
        assert answers(overlays[2]) == expected, f"after change {number}"
        if number % 97 == 0:
            overlays[1].fold()
        if number % 61 == 0:
            abandoned.append(overlays[2])
            overlays[2] = Overlay(overlays[2].path)
        if number % 150 == 0:
            overlays[2].begin_checkpoint()
            overlays[2].checkpoint()
            overlays[2].finish_checkpoint()
    for overlay in overlays:
        overlay.close()
    assert answers(Overlay(overlays[0].path)) == answers(Overlay(overlays[1].path))
    assert segments(overlays[1].path) == []


def checkpointed(database: Path) -> Overlay:
    overlay = Overlay(database)
    for number in range(2, 300):
        overlay.apply([put_inode(number, row()), put_dirent(1, b"%d" % number, number)])
    overlay.begin_checkpoint()
    overlay.checkpoint()
    overlay.finish_checkpoint()
    overlay.note_pages()
    overlay.apply([put_inode(300, row()), put_dirent(1, b"300", 300)])
    overlay.fold()
    return overlay


def copied(database: Path, name: str) -> Path:
    """As a process that is killed now would leave it."""
    place = database.parent / name
    place.mkdir()
    for path in database.parent.glob("overlay.db*"):
        shutil.copy2(path, place)
    return place / database.name


def test_a_page_that_changes_while_nobody_runs_is_found_after_a_kill(database: Path) -> None:
    overlay = checkpointed(database)
    sound, changed = copied(database, "sound"), copied(database, "changed")
    overlay.close()
    times = os.stat(changed)
    content = bytearray(changed.read_bytes())
    content[5 * PAGE_SIZE + 1000] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not Overlay(sound).has_unreadable_pages
    assert Overlay(changed).has_unreadable_pages


def test_what_sqlite_writes_back_after_a_kill_is_no_damage(database: Path) -> None:
    """Whoever looks into the database of a mount that was killed writes the WAL back."""
    overlay = checkpointed(database)
    looked_at = copied(database, "looked-at")
    overlay.close()
    with closing(sqlite3.connect(looked_at)) as connection:
        connection.execute("SELECT * FROM dirents").fetchall()
    assert not looked_at.with_name("overlay.db-wal").exists()
    again = Overlay(looked_at)
    assert not again.has_unreadable_pages
    assert len(again.names(1)) == 299


@pytest.mark.parametrize("moment", ["after a checkpoint", "after a start"])
def test_a_page_that_changes_is_found_after_a_loss_of_power(
    database: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    overlay = checkpointed(database)
    if moment == "after a start":
        overlay.close()
        overlay = Overlay(database)
        overlay.apply([put_inode(301, row())])
    sound, changed = copied(database, "sound"), copied(database, "changed")
    overlay.close()
    times = os.stat(changed)
    content = bytearray(changed.read_bytes())
    content[5 * PAGE_SIZE + 1000] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr("artifactfs.fs.overlay.pagesums.boot_id", lambda: b"2" * 16)
    assert not Overlay(sound).has_unreadable_pages
    assert Overlay(changed).has_unreadable_pages


def test_after_another_boot_checksums_of_an_open_database_do_not_count(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may have kept the one file and not the other."""
    overlay = checkpointed(database)
    old = copied(database, "old")
    overlay.begin_checkpoint()
    overlay.checkpoint()
    overlay.finish_checkpoint()
    shutil.copy2(database, old)
    overlay.close()
    monkeypatch.setattr("artifactfs.fs.overlay.pagesums.boot_id", lambda: b"2" * 16)
    assert not Overlay(old).has_unreadable_pages


def test_a_database_that_takes_nothing_loses_nothing(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: changes stay in the log, questions are answered, and later it mends."""
    overlay = Overlay(database)
    with monkeypatch.context() as patch:
        patch.setattr("artifactfs.fs.overlay.database.FOLD_AT", 3)
        overlay.connection.execute("PRAGMA query_only = 1")
        for number in range(20, 40):
            overlay.apply([put_inode(number, row(has_data=True))])
            overlay.apply([put_dirent(1, b"%d" % number, number)])
        assert not overlay.fold()
        assert overlay.count_with_data() == 20
        assert len(overlay.names(1)) == 20
        overlay.connection.execute("PRAGMA query_only = 0")
    assert overlay.fold()
    assert overlay.count_with_data() == 20
    overlay.close()


def test_a_large_change_is_answered_before_it_is_folded(database: Path, tmp_path: Path) -> None:
    overlay = Overlay(database)
    many = range(20, 20 + FOLD_AT + 1)
    overlay.apply([put_dirent(1, b"%d" % number, number) for number in many])
    assert overlay.needs_fold
    assert len(overlay.names(1)) == len(many)
    killed = tmp_path / "killed"
    shutil.copytree(database.parent, killed, ignore=shutil.ignore_patterns("killed"))
    assert len(Overlay(killed / database.name).names(1)) == len(many)
    assert overlay.fold()
    assert not overlay.needs_fold
    assert len(overlay.names(1)) == len(many)
    overlay.close()


def test_a_full_disk_bounds_what_is_kept_in_memory(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = Overlay(database)
    monkeypatch.setattr("artifactfs.fs.overlay.database.PENDING_AT_MOST", 5)
    overlay.connection.execute("PRAGMA query_only = 1")
    made = 0
    with pytest.raises(OSError, match="overlay database"):
        for made in range(100):
            overlay.apply([put_dirent(1, b"%d" % made, 0)])
    assert len(overlay.names(1)) == made == 6
    overlay.connection.execute("PRAGMA query_only = 0")
    overlay.apply([put_dirent(1, b"more", 0)])
    assert len(overlay.names(1)) == 7
    overlay.close()
