"""Whether files and folders are as they were, by the extension and by Python."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.fs.native import stamps
from artifactfs.fs.native.stamps import YOUNG, are_current, pack, stamp_of

MANY = 600
"""Enough for two threads."""


@pytest.fixture(params=["compiled", "Python"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setattr(stamps, "_compiled", None)
    elif stamps.why_missing:
        pytest.skip(stamps.why_missing)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(MANY):
        (tmp_path / f"d{number % 7}").mkdir(exist_ok=True)
        (tmp_path / f"d{number % 7}/file with a longer name {number}").write_text("1")
    (tmp_path / os.fsdecode(b"not \xff utf-8")).touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


def packed(folder: Path) -> bytes:
    """Of everything in it, and of itself."""
    found = [folder, *sorted(folder.rglob("*"))]
    later = time.time_ns() + 10_000_000_000
    return pack(
        (os.fsencode(one.relative_to(folder)), stamp_of(one.lstat(), later)) for one in found
    )


def write_again(path: Path) -> None:
    path.write_text(path.read_text())


def replace(path: Path) -> None:
    (path.parent / "another").write_text("1")
    (path.parent / "another").rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": write_again,
    "another mode": lambda path: path.chmod(0o600),
    "an old time": lambda path: os.utime(path, (0, 0)),
    "replaced": replace,
    "removed": lambda path: path.unlink(),
    "one more name": lambda path: (path.parent / "new").touch(),
    "a folder in place of its own": lambda path: path.parent.rename(path.parent.parent / "moved"),
}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("number", [0, MANY - 1])
def test_each_change_is_seen(folder: Path, change: str, number: int) -> None:
    before = packed(folder)
    assert are_current(os.fsencode(folder), before)
    time.sleep(0.02)  # a tick of the clock
    CHANGES[change](folder / f"d{number % 7}/file with a longer name {number}")
    assert not are_current(os.fsencode(folder), before)
    assert are_current(os.fsencode(folder), packed(folder))


@pytest.mark.usefixtures("each_way")
def test_links_are_not_followed(folder: Path) -> None:
    before = packed(folder)
    (folder.parent / "nowhere").touch()
    assert are_current(os.fsencode(folder), before)
    (folder / "dangling").unlink()
    (folder / "dangling").symlink_to("elsewhere")
    assert not are_current(os.fsencode(folder), before)


@pytest.mark.usefixtures("each_way")
def test_what_is_nothing_and_what_is_gone(tmp_path: Path) -> None:
    assert are_current(os.fsencode(tmp_path), b"")
    assert not are_current(os.fsencode(tmp_path / "gone"), b"")
    assert not are_current(os.fsencode(tmp_path), pack([(b"gone", (1, 1))]))


@pytest.mark.skipif(bool(stamps.why_missing), reason="needs the extension")
@pytest.mark.parametrize("cut", [1, 5, 20, 27])
def test_the_extension_reads_nothing_behind_the_end(folder: Path, cut: int) -> None:
    try:
        assert not are_current(os.fsencode(folder), packed(folder)[:-cut])
    except ValueError as error:
        assert str(error) == "the last path does not end"


def test_one_that_was_changed_just_now_is_young(tmp_path: Path) -> None:
    found = tmp_path.lstat()
    assert stamp_of(found, found.st_ctime_ns) == (found.st_ino, YOUNG)
    assert stamp_of(found, found.st_ctime_ns + 2_000_000_000) == (found.st_ino, found.st_ctime_ns)
