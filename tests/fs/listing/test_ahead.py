"""Directories that are listed before a walk asks for them: as without, whatever changes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import random
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyfuse3
import pytest

from artifactfs.features import disabled_features
from artifactfs.fs.inodes.attributes import CleanFileAttributes
from artifactfs.fs.inodes.inode import Owner
from artifactfs.fs.listing.direntplus import encode, length_of
from tests.e2e.processes import wait_until
from tests.fs.mounting import Mount, git
from tests.getdents import names_in

pytestmark = [
    pytest.mark.extension,
    pytest.mark.skipif("fast-loop" in disabled_features(), reason="it is done in that loop"),
]

FOLDERS = 40


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of `FOLDERS` folders, each with files of several kinds and a folder below it."""
    top = tmp_path_factory.mktemp("wide")
    git("init", "-q", "-b", "main", cwd=top)
    for number in range(FOLDERS):
        folder = top / f"d{number:02}"
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "file").write_text("below\n")
        (folder / "a file").write_text("x" * number)
        (folder / "run").write_text("#!/bin/sh\n")
        (folder / "run").chmod(0o755)
        (folder / "link").symlink_to("a file")
    (top / "d07" / "large").mkdir()
    for number in range(150):
        (top / "d07" / "large" / f"{number}").touch()
    git("add", "-A", cwd=top)
    git("commit", "-q", "-m", "wide", cwd=top)
    (top / "d20" / "a file").write_text("another size\n")
    (top / "d21" / "added").mkdir()
    (top / "d21" / "added" / "file").touch()
    git("add", "-A", cwd=top)
    git("commit", "-q", "-m", "another", cwd=top)
    return top


@pytest.fixture
def mount(new_mount: Callable[..., Mount], wide: Path) -> Mount:
    return new_mount(wide, "HEAD~1").start()


def walk(top: Path) -> Iterator[Path]:
    """The directories, as ``find`` visits them, with time to list ahead between two of them."""
    try:
        with os.scandir(top) as entries:
            below = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:  # moved meanwhile
        return
    yield top
    time.sleep(0.003)
    for directory in below:
        yield from walk(directory)


TOLD = ("mode", "nlink", "uid", "gid", "size", "blocks", "blksize", "rdev")
TIMES = ("atime_ns", "mtime_ns", "ctime_ns")


def told(status: os.stat_result) -> list[int]:
    return [getattr(status, f"st_{name}") for name in (*TOLD, *TIMES)]


def ahead(mount: Mount) -> int:
    """How many directories were listed ahead, and asked for then."""
    return int(mount.ask("ahead"))


def test_a_walk_sees_what_it_sees_without(
    mount: Mount, new_mount: Callable[..., Mount], wide: Path
) -> None:
    plain = new_mount(wide, "HEAD~1").without("listings-ahead")
    seen: dict[Path, dict[str, list[int]]] = {}
    for one in (plain, mount):
        seen[one.path] = {}
        for directory in walk(one.path):
            for entry in os.scandir(directory):
                path = os.path.relpath(entry.path, one.path)
                seen[one.path][path] = told(entry.stat(follow_symlinks=False))
                assert entry.inode() == entry.stat(follow_symlinks=False).st_ino
    sides = [
        {path: found[: -len(TIMES)] for path, found in of_one.items()} for of_one in seen.values()
    ]
    assert sides[0] == sides[1]  # but for the times, which are those of the two mounts
    assert ahead(plain) == 0
    assert ahead(mount) > 0
    names = list(seen[mount.path])
    numbers = [(mount.path / path).lstat().st_ino for path in names]
    mount.kernel_forgets()
    assert [(mount.path / path).lstat().st_ino for path in names] == numbers
    assert [told((mount.path / path).lstat()) for path in names] == list(seen[mount.path].values())


def test_references_are_counted(mount: Mount) -> None:
    """What the kernel has forgotten is not kept, whether it was listed ahead or not."""
    for _ in range(3):
        for _ in walk(mount.path):
            pass
        assert ahead(mount)
        mount.kernel_forgets()
    wait_until(lambda: mount.ask("memory")["inodes"] < 10, "the kernel forgets")


def changes(top: Path, near: int, rng: random.Random) -> Callable[[], object]:
    """A change in one of the folders that a walk in folder `near` comes to next."""
    number = near + rng.randrange(1, 4)
    folder = top / f"d{number:02}"
    new = folder / f"new{rng.randrange(10**9)}"
    file = folder / "run"
    return rng.choice(
        [
            lambda: new.touch(),
            lambda: new.mkdir(),
            lambda: new.symlink_to("nowhere"),
            lambda: file.unlink(missing_ok=True),
            lambda: file.rename(new),
            lambda: file.chmod(0o600),
            lambda: file.write_text("y" * rng.randrange(1000)),
            lambda: os.utime(file, (1, 1)),
            lambda: os.link(file, new),
            lambda: os.truncate(file, 3),
            lambda: subprocess.run(["rm", "-rf", folder / "below"], check=True),
            lambda: folder.rename(top / new.name),
            lambda: folder.chmod(0o700),
        ]
    )


@pytest.mark.parametrize("seed", range(6))
def test_what_changes_during_a_walk(mount: Mount, tmp_path: Path, wide: Path, seed: int) -> None:
    """Each directory is listed as it is when it is asked for, beside a plain directory."""
    rng, other = random.Random(seed), random.Random(seed)
    plain = tmp_path / "plain"
    git("clone", "-q", str(wide), str(plain), cwd=tmp_path)
    git("checkout", "-q", "HEAD~1", cwd=plain)
    for _ in range(3):
        for directory in walk(mount.path):
            if directory.name[:1] == "d" and rng.random() < 0.3:
                seen = rng.getrandbits(32)
                rng.seed(seen)
                other.seed(seen)
                near = int(directory.name[1:])
                for change in (changes(mount.path, near, rng), changes(plain, near, other)):
                    with contextlib.suppress(FileNotFoundError):  # of what an earlier one moved
                        change()
            place = plain / directory.relative_to(mount.path)
            if place.exists():
                assert described(directory) == described(place)
        mount.kernel_forgets()
    assert ahead(mount)


def described(directory: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for entry in os.scandir(directory):
        if entry.name not in (".git", ".artifact-fs"):
            status = entry.stat(follow_symlinks=False)
            size = 0 if entry.is_dir(follow_symlinks=False) else status.st_size
            found[entry.name] = (status.st_mode, size, status.st_nlink if size else 0)
    return found


def test_a_switch_during_a_walk(mount: Mount, wide: Path) -> None:
    """The directories that come next are those of the new commit."""
    commits = git("rev-list", "HEAD", cwd=wide).split()
    for turn in range(6):
        for directory in walk(mount.path):
            if directory == mount.path / "d19" / "below":
                mount.ask("switch", commit=commits[turn % 2])
            if directory.name == "d20":
                size = (directory / "a file").stat().st_size
                assert size == (20 if turn % 2 else len("another size\n"))
            if directory.name == "d21":
                assert ("added" in os.listdir(directory)) == (not turn % 2)
        mount.kernel_forgets()
    assert ahead(mount)


def test_a_walk_that_removes_what_it_finds(mount: Mount) -> None:
    folders = list(mount.path.glob("d*"))
    assert len(folders) == FOLDERS
    subprocess.run(["rm", "-r", *folders], check=True)
    assert not list(mount.path.glob("d*"))
    wait_until(lambda: mount.ask("memory")["inodes"] < 10, "the kernel forgets")


def test_a_small_buffer(mount: Mount) -> None:
    """What does not fit into it is not listed ahead, and nothing is missing."""
    for top, folders, files in os.walk(mount.path):
        assert sorted(names_in(top, 280)) == sorted([*folders, *files, ".", ".."])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of its struct stat")
@pytest.mark.parametrize("name", [b"a", b"of eight", b"n" * 255, b"\xff\xfe"])
@pytest.mark.parametrize("time_ns", [0, 1_600_000_000_123_456_789, -1_500_000_000])
@pytest.mark.parametrize("size", [None, 0, 5 << 32])
def test_entries_are_as_libfuse_makes_them(name: bytes, time_ns: int, size: int | None) -> None:
    attributes = CleanFileAttributes(Owner(1000, 1 << 31, unknown_size=7), time_ns)
    entry = attributes.of(1 << 62 | 5, 0o100755, size)
    seconds, ns = divmod(time_ns, 1_000_000_000)
    status = struct.pack(
        "=3Q4IQ3q9q",
        *(0, entry.st_ino, 1, entry.st_mode, 1000, 1 << 31, 0, 0),
        *(entry.st_size, entry.st_blksize, entry.st_blocks),
        *(seconds, ns, seconds, ns, seconds, ns, 0, 0, 0),
    )
    parameters = struct.pack("=QQ", entry.st_ino, 0) + status
    parameters += struct.pack("=dd", entry.attr_timeout, entry.entry_timeout)
    room = ctypes.create_string_buffer(1024)
    add = ctypes.CDLL(pyfuse3.__file__).fuse_add_direntry_plus
    add.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, *2 * (ctypes.c_char_p,))
    add.argtypes += (ctypes.c_int64,)
    add.restype = ctypes.c_size_t
    length = add(None, room, len(room), name, parameters, 77 << 32)
    assert encode(entry, name, 77 << 32) == room.raw[:length]
    assert length_of([name]) == length_of([]) + length
