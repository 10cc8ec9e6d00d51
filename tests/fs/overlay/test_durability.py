"""What happens to the overlay when things go wrong."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from artifactfs.damage import DamageReport
from artifactfs.errors import StateError
from artifactfs.fs.overlay.database import Overlay
from artifactfs.fs.overlay.schema import MIGRATIONS
from artifactfs.fs.overlay.smallfiles import SmallFiles
from artifactfs.fs.overlay.upper import Upper
from tests.fs.mounting import Mount, MountFailed


def test_a_damaged_database_is_named_and_left_alone(mount: Mount) -> None:
    (mount.path / "README").write_text("precious\n")
    mount.stop()
    database = mount.layout / "overlay.db"
    for damage in (b"", b"garbage" * 1000, database.read_bytes()[:100] + b"\xff" * 8000):
        database.write_bytes(damage)
        with pytest.raises(MountFailed, match=r"StateError: overlay database .*overlay\.db"):
            mount.start()
        assert database.read_bytes() == damage
    database.unlink()
    with pytest.raises(MountFailed, match=r"StateError: overlay database .* is missing"):
        mount.start()
    assert not database.exists()
    (segment,) = (mount.layout / "small").iterdir()
    assert segment.read_bytes() == b"precious\n"


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_lost_database_is_not_made_anew_where_names_alone_were_changed(
    mount: Mount, end: str
) -> None:
    """What was removed would be back, and nobody would be told."""
    (mount.path / "README").unlink()
    (mount.path / "src").rename(mount.path / "moved")
    mount.stop() if end == "stopped" else mount.kill()
    for path in mount.layout.glob("overlay.db"):
        path.unlink()
    with pytest.raises(MountFailed, match=r"StateError: overlay database .* is missing"):
        mount.start()


def test_a_newer_schema_is_refused(mount: Mount) -> None:
    mount.stop()
    with sqlite3.connect(mount.database()) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StateError, match="schema version"):
        Overlay(mount.layout / "overlay.db")


def test_an_older_schema_is_migrated(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    mount.stop()
    more = "CREATE TABLE later (x); INSERT INTO later VALUES (1)"
    monkeypatch.setattr("artifactfs.fs.overlay.database.MIGRATIONS", (*MIGRATIONS, more))
    Overlay(mount.layout / "overlay.db").close()
    with sqlite3.connect(mount.layout / "overlay.db") as database:
        assert database.execute("SELECT x FROM later").fetchall() == [(1,)]


def test_two_processes_cannot_serve_one_overlay(mount: Mount) -> None:
    other = Mount(mount.directory / "other", mount.gitdir, mount.commit or "")
    other.layout = mount.layout
    with pytest.raises(MountFailed, match="in use by another process"):
        other.start()


def test_orphans_are_swept_after_an_unclean_end(mount: Mount) -> None:
    upper = mount.layout / "upper"
    with open(mount.path / "open", "wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.unlink(mount.path / "open")
        (mount.path / "kept").write_text("kept" * 10_000)
        mount.kill()
    (upper / "aa").mkdir()
    (upper / "aa/87040.new").write_bytes(b"a copy that was not finished")
    (upper / "aa/87041").write_bytes(b"a file whose row was not committed")
    assert len(mount.upper_files()) == 4
    mount.start()
    while len(mount.upper_files()) > 1:
        assert (mount.path / "kept").read_text() == "kept" * 10_000
    assert (mount.path / "kept").read_text() == "kept" * 10_000


def test_numbers_are_never_used_twice(mount: Mount) -> None:
    seen = set()
    for round_number in range(3):
        for number in range(50):
            path = mount.path / f"file-{number}"
            path.touch()
            assert path.stat().st_ino not in seen
            seen.add(path.stat().st_ino)
            path.unlink()
        mount.restart(kill=round_number % 2 == 0)


def test_the_log_of_the_database_stays_short(mount: Mount) -> None:
    """It is written back in the background, and begins anew while the load goes on."""
    wal = mount.layout / "overlay.db-wal"
    script = "import os\nfor n in range(4000): os.mkdir(f'd{n}'); os.rmdir(f'd{n}')"
    sizes = []
    for _ in range(4):
        subprocess.run(["python3", "-c", script], cwd=mount.path, check=True)
        sizes.append(wal.stat().st_size)
    assert max(sizes) < 4 * 4000 * 2 * 2048  # all that was written is more than that
    names = os.listdir(mount.path)
    mount.restart(kill=True)
    assert os.listdir(mount.path) == names


def test_a_write_that_was_acknowledged_survives_each_kill(mount: Mount) -> None:
    """Killed at once after each single write; the file stays open in between for its writer."""
    expected = b""
    for number in range(8):
        descriptor = os.open(mount.path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b"%d" % number)
        expected += b"%d" % number
        mount.kill()
        with contextlib.suppress(OSError):
            os.close(descriptor)
        mount.start()
        assert (mount.path / "log").read_bytes() == expected


def test_a_kill_during_a_copy_up_changes_nothing(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start()
    mount.close_gate()
    target = mount.path / "big"
    script = f"open({str(target)!r}, 'r+b', buffering=0).write(b'x')"
    writer = subprocess.Popen(["python3", "-c", script], stderr=subprocess.DEVNULL)
    while not mount.log():
        pass
    mount.kill()
    assert writer.wait(60) != 0
    mount.open_gate()
    mount.start()
    assert target.read_bytes() == bytes(range(256)) * 4096
    assert mount.ask("local_changes") == []


def test_start_does_not_read_the_overlay(mount: Mount) -> None:
    """What is in memory after a start is the root, whatever is in the overlay."""
    for number in range(200):
        (mount.path / f"src/{number}").write_text("x")
    mount.restart()
    assert mount.ask("memory")["inodes"] == 1
    assert len(os.listdir(mount.path / "src")) == 206


def test_local_changes_are_listed(mount: Mount) -> None:
    top = mount.path
    (top / "README").write_text("x")
    (top / "run.sh").chmod(0o644)
    (top / "src/f1.c").unlink()
    (top / "new").mkdir()
    (top / "new/file").touch()
    os.utime(top / "big")
    os.rename(top / "docs", top / "papers")
    (top / "link").unlink()
    (top / "link").write_text("README")
    assert sorted(mount.ask("local_changes")) == [
        ["README", "modified"],
        ["docs/", "deleted"],
        ["link", "modified"],
        ["new/", "added"],
        ["new/file", "added"],
        ["papers/", "added"],
        ["papers/a.txt", "added"],
        ["run.sh", "mode"],
        ["src/f1.c", "deleted"],
    ]
    assert mount.ask("stats") == {"dirty_files": 3, "dirty_bytes": 7}


@pytest.mark.parametrize("what", ["names of upper files", "segments"])
def test_no_sync_returns_before_it_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """While another one is at it: what that one has begun is not on the disk yet."""
    upper = Upper(tmp_path / "upper")
    small = SmallFiles(
        tmp_path / "small", lambda: 1, damage=DamageReport(), synced={}, power_lost=False
    )
    os.close(upper.create_draft(16))
    upper.publish(16)
    small.append(b"content")
    sync: Callable[[], None] = upper.sync if what.startswith("names") else partial(small.sync, 1)
    begun, go_on, fsync, synced = threading.Event(), threading.Event(), os.fsync, []

    def slow(fd: int) -> None:
        if threading.current_thread() is first:
            begun.set()
            go_on.wait(60)
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    first = threading.Thread(target=sync)
    first.start()
    assert begun.wait(60)
    sync()
    folders = {str(tmp_path / "upper/00"), str(tmp_path / "upper")}
    if what == "segments":
        folders = {str(tmp_path / "small/1"), str(tmp_path / "small")}
    assert set(synced) == folders
    go_on.set()
    first.join()
    synced.clear()
    sync()
    assert set(synced) <= {str(tmp_path / "small/1")}
    small.close()
    upper.close()
