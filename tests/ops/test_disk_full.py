"""The state root's disk is full: errors are right, nothing is damaged, space mends it."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import random
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio

from artifactfs.hydration.local.sizes import SizeStore
from tests.btrfs import limited_folder
from tests.e2e.mount_table import mounts_below
from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until

pytestmark = pytest.mark.long

MIB = 1 << 20
RIGHT_ERRORS = {errno.ENOSPC, errno.EIO}


@pytest.fixture
def small(idle_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """A daemon that was not started yet, its state root on a file system of 16 MiB."""
    idle_daemon.state.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", idle_daemon.state], check=True
    )
    idle_daemon.state.chmod(0o700)
    try:
        yield idle_daemon
    finally:
        idle_daemon.clean_up()
        subprocess.run(["umount", "-l", idle_daemon.state], check=False, capture_output=True)


def resize(daemon: DaemonProcess, mebibytes: int) -> None:
    options = f"remount,size={mebibytes}m"
    subprocess.run(["mount", "-o", options, "tmpfs", daemon.state], check=True)


def fill(daemon: DaemonProcess) -> Path:
    """Take what is free; removing the file gives it back."""
    filler = daemon.state / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sound(daemon: DaemonProcess, name: str) -> None:
    """The overlay, the sizes, and every object that Git finds, once the daemon has ended."""
    assert daemon.stop() == 0
    for database in (daemon.state / "repos" / name / "overlay.db", daemon.state / "cache/sizes.db"):
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    gitdir = daemon.state / "repos" / name / "git"
    checked = subprocess.run(
        ["git", f"--git-dir={gitdir}", "fsck", "--no-dangling"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.timeout(400)
def test_full_in_the_middle_of_hydration(
    small: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    bulky: tuple[Path, dict[str, str]],
) -> None:
    bare, digests = bulky
    small.start()
    mount = small.add_repo("bulky", remote_repo(bare).url, "--deadline", "10s")
    failed = []
    for name, expected in digests.items():
        try:
            assert digest(mount / name) == expected, f"{name} has wrong content"
        except OSError as error:
            assert error.errno in RIGHT_ERRORS
            failed.append(name)
    print(f"{len(failed)} of {len(digests)} files could not be read")
    assert sorted(os.listdir(mount)) == [".git", "folder0", "folder1", "folder2", "folder3"]
    assert (mount / "folder0/file0.bin").stat().st_size == MIB

    resize(small, 200)
    for name, expected in digests.items():
        wait_until(lambda name=name: _readable(mount / name), f"{name} after there is space")
        assert digest(mount / name) == expected
    assert (
        subprocess.run(["git", "-C", mount, "status", "--porcelain"], capture_output=True).stdout
        == b""
    )
    sound(small, "bulky")


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


@pytest.mark.timeout(400)
def test_full_in_the_middle_of_a_write(
    small: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    small.start()
    mount = small.add_repo("odd", remote_repo().url)
    small.wait_for("odd", "index")
    contents: dict[str, bytes] = {}
    (mount / "before").write_bytes(b"before")
    rng = random.Random(11)
    with pytest.raises(OSError) as caught:
        for number in range(100):
            content = rng.randbytes(300_000)
            (mount / f"written{number}").write_bytes(content)
            contents[f"written{number}"] = content
    assert caught.value.errno == errno.ENOSPC
    assert len(contents) > 10
    filler = fill(small)

    for what in (
        lambda: (mount / "folder").mkdir(),
        lambda: os.link(mount / "before", mount / "l"),
    ):
        try:
            what()
        except OSError as error:
            assert error.errno in RIGHT_ERRORS
    assert (mount / "before").read_bytes() == b"before"
    for name, content in contents.items():
        assert (mount / name).read_bytes() == content

    assert small.stop() == 0
    assert not mounts_below(small.mounts)
    assert "Traceback" not in small.log.read_text()
    filler.unlink()
    resize(small, 64)
    small.start()
    (mount / "after").write_bytes(b"after")
    contents |= {"before": b"before", "after": b"after"}
    small.stop()
    sound(small, "odd")
    small.start()
    for name, content in contents.items():
        assert (mount / name).read_bytes() == content


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("count", "size"), [(5, MIB), (420, 12_000)])
def test_removing_files_makes_room(
    small: DaemonProcess, remote_repo: Callable[..., ServedRepository], count: int, size: int
) -> None:
    """The way out of a full disk must not need space itself."""
    small.start()
    mount = small.add_repo("odd", remote_repo().url)
    small.wait_for("odd", "index")
    for number in range(count):
        (mount / f"file{number}").write_bytes(b"\1" * size)
    fill(small)
    for number in range(count):
        (mount / f"file{number}").unlink()
    wait_until(
        lambda: os.statvfs(small.state).f_bavail * os.statvfs(small.state).f_frsize > 3 * MIB,
        "the space of removed files",
    )
    (mount / "new").write_bytes(b"\2" * MIB)
    assert (mount / "new").read_bytes() == b"\2" * MIB


@pytest.fixture
def on_btrfs(idle_daemon: DaemonProcess, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that was not started yet, its state root a subvolume that may hold 60 MiB."""
    with limited_folder(tmp_path, 60) as folder:
        folder.chmod(0o700)
        idle_daemon.state = folder
        try:
            yield idle_daemon
        finally:
            idle_daemon.clean_up()


@pytest.mark.timeout(400)
def test_a_used_up_quota_on_btrfs(
    on_btrfs: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    bulky: tuple[Path, dict[str, str]],
) -> None:
    """There, who writes to a mapped file dies; the workers have none, and start again."""
    bare, digests = bulky
    on_btrfs.start()
    mount = on_btrfs.add_repo("bulky", remote_repo(bare).url, "--hydrate", "none")
    on_btrfs.wait_for("bulky", "index")
    filler = on_btrfs.state / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
        while True:
            file.write(b"\0" * 65_536)
    assert caught.value.errno == errno.EDQUOT
    for round_number in range(4):
        os.sync()  # what is mapped is clean then, and writing to it takes room
        for name, expected in list(digests.items())[round_number * 2 :][:2]:
            assert digest(mount / name) == expected
        assert subprocess.run(["ls", "-lR", mount], stdout=subprocess.DEVNULL).returncode == 0
    on_btrfs.kill()
    on_btrfs.start()
    wait_until(lambda: mounts_below(on_btrfs.mounts), "the mount")
    for name, expected in list(digests.items())[8:16]:
        assert digest(mount / name) == expected
    log = on_btrfs.log.read_text()
    assert "Traceback" not in log
    assert "starting another" not in log
    filler.unlink()


def _use_sizes(folder: Path) -> None:
    async def main() -> None:
        store = SizeStore(folder / "sizes.db")
        sizes = {n.to_bytes(20, "big"): n for n in range(40_000)}
        await store.add_many(sizes)
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4_096)
        for number in range(10):
            os.sync()
            assert len(store.get_many(sizes)) == len(sizes)
            with suppress(sqlite3.Error):
                await store.add_many({oid: size + number for oid, size in sizes.items()})
        store.close()

    trio.run(main)


def test_sizes_on_a_full_btrfs(on_btrfs: DaemonProcess) -> None:
    """With an index of the WAL that is mapped, this process is ended by SIGBUS."""
    process = multiprocessing.get_context("fork").Process(target=_use_sizes, args=[on_btrfs.state])
    process.start()
    process.join(300)
    assert process.exitcode == 0
