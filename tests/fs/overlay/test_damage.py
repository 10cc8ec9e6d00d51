"""Data of written files that the disk lost or changed: found, named, and never served."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest

from tests.fs.mounting import Mount, MountFailed

LARGE = os.urandom(3 << 20)
MEDIUM = os.urandom(100_000)


def errno_of(look: Callable[[], object]) -> int:
    with pytest.raises(OSError) as caught:
        look()
    return caught.value.errno or 0


def overwrite(path: Path, at: int, content: bytes) -> None:
    """As a disk does it: the times of the file stay."""
    before = os.stat(path)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path) -> None:
    at = path.stat().st_size // 2
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    overwrite(path, 0, bytes(4096))


def upper(mount: Mount, name: str) -> Path:
    ino = os.stat(mount.path / name).st_ino
    return mount.layout / "upper" / f"{ino >> 9 & 255:02x}" / str(ino)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "cut": cut,
    "one bit": flip,
    "zeroed page": zero,
}


ENDS = ("clean", "killed", "synced, then power lost")


def write(path: Path, content: bytes, *, synced: bool) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def end_and_start(mount: Mount, end: str, damage: Callable[[], None]) -> None:
    mount.stop() if end == "clean" else mount.kill()
    damage()
    mount.start(**({"boot": 1} if "power" in end else {}))


def check_damaged(mount: Mount, sizes: dict[str, int], files: list[Path]) -> None:
    """Each name is there, has its size, and says EIO; log and report name each file."""
    for name, size in sizes.items():
        path = mount.path / name
        assert path.stat().st_size == size
        assert errno_of(path.read_bytes) == errno.EIO
        assert errno_of(lambda path=path: append(path)) == errno.EIO  # type: ignore[misc]
    assert {damage["file"] for damage in mount.ask("damage")} == {str(file) for file in files}
    assert all(str(file) in mount.stderr() for file in files)


@pytest.mark.parametrize("end", ENDS)
def test_a_damaged_upper_file_is_an_error_of_its_name_alone(mount: Mount, end: str) -> None:
    contents = {how: LARGE for how in DAMAGES} | {f"{how}, medium": MEDIUM for how in DAMAGES}
    for name, content in {**contents, "sound": MEDIUM, "README": MEDIUM}.items():
        write(mount.path / name, content, synced=end != "clean")
    names = sorted(os.listdir(mount.path))
    files = {name: upper(mount, name) for name in contents}
    mount.ask("seal")

    def damage() -> None:
        for name, file in files.items():
            DAMAGES[name.partition(",")[0]](file)

    end_and_start(mount, end, damage)
    assert sorted(os.listdir(mount.path)) == names
    for name in ("sound", "README"):
        assert (mount.path / name).read_bytes() == MEDIUM
    sizes = {name: len(content) for name, content in contents.items()}
    check_damaged(mount, sizes, list(files.values()))
    assert subprocess.run(["cp", "-r", ".", mount.directory / "copy"], cwd=mount.path).returncode

    for name in contents:
        (mount.path / name).write_bytes(LARGE) if "," in name else os.unlink(mount.path / name)
    os.rename(mount.path / "sound", mount.path / "cut, medium")
    mount.restart()
    assert (mount.path / "missing, medium").read_bytes() == LARGE
    assert (mount.path / "cut, medium").read_bytes() == MEDIUM
    assert mount.ask("damage") == []


def test_upper_files_that_go_while_they_are_mounted(mount: Mount) -> None:
    """What uses one first after that says so, whatever it does."""
    uses: dict[str, Callable[[Path], object]] = {
        "read": Path.read_bytes,
        "append": append,
        "cut": lambda path: os.truncate(path, 1000),
    }
    for name in (*uses, "sound"):
        write(mount.path / name, LARGE, synced=False)
    mount.restart()
    mount.ask("settle")
    files = [upper(mount, name) for name in uses]
    for (name, use), file in zip(uses.items(), files, strict=True):
        file.unlink()
        assert errno_of(partial(use, mount.path / name)) == errno.EIO
        assert str(file) in {damage["file"] for damage in mount.ask("damage")}
        (mount.path / name).write_bytes(MEDIUM)
        assert (mount.path / name).read_bytes() == MEDIUM
    with open(mount.path / "sound", "ab") as opened:
        opened.write(b"more")
        opened.flush()
        upper(mount, "sound").unlink()
        assert errno_of(partial(os.fsync, opened.fileno())) == errno.EIO
    assert str(upper(mount, "sound")) in {damage["file"] for damage in mount.ask("damage")}


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def test_what_programs_write_and_cut_is_no_damage(mount: Mount) -> None:
    path = mount.path / "file"
    for end in ("kill", "stop"):
        path.write_bytes(LARGE)
        mount.ask("seal")
        os.truncate(path, 1 << 20)
        with path.open("r+b") as file:
            file.write(b"changed")
        mount.restart(kill=end == "kill")
        assert path.read_bytes() == b"changed" + LARGE[7 : 1 << 20]
        append(path)
        mount.restart(kill=end == "kill")
        assert path.read_bytes() == b"changed" + LARGE[7 : 1 << 20] + b"more"
        os.utime(path, (1, 2))
        mount.restart(kill=end == "kill")
        assert path.read_bytes() == b"changed" + LARGE[7 : 1 << 20] + b"more"
        assert mount.ask("damage") == []


@pytest.mark.parametrize("end", ENDS)
def test_a_damaged_segment_is_an_error_of_the_files_in_it(mount: Mount, end: str) -> None:
    mount.restart_with(segment_bytes=1)  # a segment for each file
    contents = {how: how.encode() * 1000 for how in DAMAGES}
    segments = {}
    for name, content in {**contents, "sound": b"sound" * 100}.items():
        before = set((mount.layout / "small").iterdir())
        write(mount.path / name, content, synced=end != "clean")
        (segments[name],) = set((mount.layout / "small").iterdir()) - before

    def damage() -> None:
        for name in contents:
            DAMAGES[name](segments[name])

    end_and_start(mount, end, damage)
    assert (mount.path / "sound").read_bytes() == b"sound" * 100
    sizes = {name: len(content) for name, content in contents.items()}
    check_damaged(mount, sizes, [segments[name] for name in contents])
    for name, content in contents.items():
        (mount.path / name).write_bytes(content)
    mount.restart()
    for name, content in contents.items():
        assert (mount.path / name).read_bytes() == content
    assert mount.ask("damage") == []


def test_other_files_of_a_damaged_segment_are_right(mount: Mount) -> None:
    contents = {f"s{number}": b"%d" % number * 1000 for number in range(10)}
    for name, content in contents.items():
        (mount.path / name).write_bytes(content)
    mount.stop()
    (segment,) = (mount.layout / "small").iterdir()
    flip(segment)
    os.truncate(segment, 9500)
    mount.start()
    for name, content in contents.items():
        if name in ("s5", "s9"):
            assert errno_of((mount.path / name).read_bytes) == errno.EIO
        else:
            assert (mount.path / name).read_bytes() == content


def test_names_of_which_nothing_can_be_told_are_shown(mount: Mount) -> None:
    """Rows on a damaged page of the database: EIO for these, and all others as ever."""
    for number in range(600):
        (mount.path / "src" / f"n{number:03}").write_bytes(b"%d" % number)
    names = sorted(os.listdir(mount.path / "src"))
    mount.stop()
    database = mount.layout / "overlay.db"
    pages = database.read_bytes()
    leaves = [
        at
        for at in range(2048, len(pages), 2048)
        if pages[at] == 13 and b"\x81\xa4" in pages[at : at + 2048]
    ]
    leaf = leaves[len(leaves) // 2]
    with database.open("r+b") as file:
        file.seek(leaf)
        file.write(bytes(2048))
    mount.start()
    assert sorted(os.listdir(mount.path / "src")) == names
    told = {}
    for name in names[-600:]:
        path = mount.path / "src" / name
        try:
            told[name] = path.read_bytes()
        except OSError as error:
            assert error.errno == errno.EIO
    assert 500 < len(told) < 600
    assert all(content == b"%d" % int(name[1:]) for name, content in told.items())


@pytest.mark.parametrize("secret", [True, False])
def test_two_names_with_one_number_never_show_each_other(mount: Mount, secret: bool) -> None:
    mount.stop()
    if not secret:  # an overlay that was made before there was one
        with closing(sqlite3.connect(mount.database())) as database:
            database.execute("UPDATE meta SET value = x'' WHERE key = 'ino_secret'")
            database.commit()
    contents = {name: f"int {name[:2]};\n" for name in ("f0.c", "f1.c")}
    mount.start(same_number=list(contents))
    source = mount.path / "src"
    assert {"f0.c", "f1.c"} <= set(os.listdir(source))
    for backwards in (False, True):
        with ExitStack() as held:  # the kernel forgets no file that is open, and its number
            opened = {name: open_or_eio(source / name, held) for name in contents}
            (right,) = [name for name, file in opened.items() if file is not None]
            assert opened[right].read() == contents[right]  # type: ignore[union-attr]
            (wrong,) = contents.keys() - {right}
            assert errno_of((source / wrong).read_bytes) == errno.EIO
            said = [str(damage["what"]) + damage["file"] for damage in mount.ask("damage")]
            assert any("f1.c" in one for one in said)
        contents[right] += "more"
        (source / right).write_text(contents[right])
        mount.restart()
        names = list(contents)[:: -1 if backwards else 1]
        told = {name: read_or_eio(source / name) for name in names}
        assert any(told.values())
        assert all(content in (None, contents[name]) for name, content in told.items())


def open_or_eio(path: Path, until: ExitStack) -> TextIO | None:
    try:
        return until.enter_context(open(path))
    except OSError as error:
        assert error.errno == errno.EIO
        return None


def read_or_eio(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError as error:
        assert error.errno == errno.EIO
        return None


def test_numbers_stay_and_are_of_one_mount_alone(new_mount: Callable[..., Mount]) -> None:
    mounts = [new_mount().start() for _ in range(2)]
    numbers = [os.stat(mount.path / "src/deep/er/x").st_ino for mount in mounts]
    assert numbers[0] != numbers[1]
    mounts[0].restart(kill=True)
    assert os.stat(mounts[0].path / "src/deep/er/x").st_ino == numbers[0]


def test_a_page_without_a_checksum_is_named_when_it_cannot_be_read(mount: Mount) -> None:
    """SQLite is the first to see it, and only when somebody looks at what was on it."""
    source = mount.path / "src"
    for number in range(200):
        (source / f"n{number:03}").write_bytes(b"%d" % number)
        os.chmod(source / f"n{number:03}", 0o640)
    names = sorted(os.listdir(source))
    mount.stop()
    kept = mount.directory / "kept"
    shutil.copytree(mount.layout, kept, symlinks=True)
    database = mount.layout / "overlay.db"
    outcomes = set()
    for number in range(2, database.stat().st_size // 2048, 3):
        overwrite(database, number * 2048, bytes(2048))
        database.with_name("overlay.db-sums").unlink()
        try:
            mount.start()
        except MountFailed as error:
            assert f"{database} is damaged" in str(error)
        else:
            outcome = read_all(mount, source, names)
            outcomes.add(outcome)
            if outcome != "right":
                assert str(database) in {damage["file"] for damage in mount.ask("damage")}
            mount.stop()
        shutil.rmtree(mount.layout)
        shutil.copytree(kept, mount.layout, symlinks=True)
    assert outcomes & {"EIO for some", "EIO for all"}


@pytest.mark.parametrize("end", ENDS[:2])
def test_a_changed_page_of_the_database_is_never_believed(mount: Mount, end: str) -> None:
    """Whatever bit: names and attributes are right, or EIO, or the whole is refused by name."""
    source = mount.path / "src"
    for number in range(200):
        (source / f"n{number:03}").write_bytes(b"%d" % number)
        os.chmod(source / f"n{number:03}", 0o640)
    os.symlink("t" * 3000, source / "long")  # has a page of its own that is none of a B-tree
    names = sorted(os.listdir(source))
    mount.stop()
    if end == "killed":
        mount.start()
        (source / "one-more").touch()
        names.append("one-more")
        mount.kill()
    mount.config["maintenance_s"] = 0.001  # what is done now and then meets the damage, too
    kept = mount.directory / "kept"
    shutil.copytree(mount.layout, kept, symlinks=True)
    database = mount.layout / "overlay.db"
    pages = database.stat().st_size // 2048
    outcomes = set()
    for number in (0, *sorted(random.Random(1).sample(range(1, pages), 4))):
        at = number * 2048 + 1500
        overwrite(database, at, bytes([database.read_bytes()[at] ^ 16]))
        try:
            mount.start()
        except MountFailed as error:
            assert f"{database} is damaged" in str(error)
            outcomes.add("refused")
        else:
            for _ in range(2):
                mount.ask("settle")
                outcomes.add(read_all(mount, source, names))
                assert mount.ask("measure")["dirty_files"] >= 0
                assert str(database) in {damage["file"] for damage in mount.ask("damage")}
                mount.restart()
            mount.stop()
        assert str(database) in mount.stderr()
        shutil.rmtree(mount.layout)
        shutil.copytree(kept, mount.layout, symlinks=True)
    assert "refused" in outcomes
    assert outcomes & {"EIO for some", "EIO for all"}


def read_all(mount: Mount, source: Path, names: list[str]) -> str:
    try:
        assert sorted(os.listdir(source)) == sorted(names)
    except OSError as error:
        assert error.errno == errno.EIO
        return "EIO for all"
    wrong = 0
    for name in filter(re.compile(r"n\d+").fullmatch, names):
        try:
            assert (source / name).read_bytes() == b"%d" % int(name[1:])
            assert (source / name).stat().st_mode & 0o7777 == 0o640
        except OSError as error:
            assert error.errno == errno.EIO, mount.stderr()
            wrong += 1
    return "EIO for some" if wrong else "right"
