"""Which files and folders are not as they were, by the extension and by Python."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.fs.native import stamps
from artifactfs.fs.native.stamps import YOUNG, changed_paths, pack, stamp_of

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
    top = tmp_path / "upper"
    for number in range(7):
        (top / f"d{number}").mkdir(parents=True)
    for number in range(MANY):
        (top / f"d{number % 7}/file with a longer name {number}").write_text("1")
    (top / os.fsdecode(b"not \xff utf-8")).touch()
    (top / "dangling").symlink_to("nowhere")
    return top


def packed(folder: Path) -> bytes:
    """Of everything in it, and of itself."""
    found = [folder, *sorted(folder.rglob("*"))]
    later = time.time_ns() + 10_000_000_000
    return pack(
        (os.fsencode(one.relative_to(folder)), stamp_of(one.lstat(), later)) for one in found
    )


def paths_of(before: bytes) -> list[str]:
    """Those that `packed` has packed."""
    found, at = [], 0
    while at < len(before):
        end = before.index(b"\0", at + 16)
        found.append(os.fsdecode(before[at + 16 : end]))
        at = end + 1
    return found


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


def changed(folder: Path, before: bytes) -> list[str]:
    found = changed_paths(os.fsencode(folder), before)
    assert found is not None
    return sorted(os.fsdecode(path) for path in found)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("number", [0, MANY - 1])
def test_each_change_is_seen(folder: Path, change: str, number: int) -> None:
    before = packed(folder)
    assert changed(folder, before) == []
    parent = f"d{number % 7}"
    path = f"{parent}/file with a longer name {number}"
    time.sleep(0.02)  # a tick of the clock
    CHANGES[change](folder / path)
    also = {
        "replaced": [parent, path],
        "removed": [parent, path],
        "one more name": [parent],
        "a folder in place of its own": [".", *(p for p in paths_of(before) if p[:2] == parent)],
    }
    assert changed(folder, before) == sorted(also.get(change, [path]))
    assert changed(folder, packed(folder)) == []


@pytest.mark.usefixtures("each_way")
def test_one_that_is_young_may_have_changed(folder: Path) -> None:
    ino = (folder / "d3").stat().st_ino
    assert changed(folder, packed(folder) + pack([(b"d3", (ino, YOUNG))])) == ["d3"]


@pytest.mark.usefixtures("each_way")
def test_links_are_not_followed(folder: Path) -> None:
    before = packed(folder)
    (folder.parent / "nowhere").touch()
    assert changed(folder, before) == []
    time.sleep(0.02)
    (folder / "dangling").unlink()
    (folder / "dangling").symlink_to("elsewhere")
    assert changed(folder, before) == [".", "dangling"]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("number", range(7))
def test_nothing_is_looked_for_behind_a_link(folder: Path, number: int) -> None:
    """It may lead to a disk that does not answer, or into a mount of ours."""
    before = packed(folder)
    inside = [path for path in paths_of(before) if path.startswith(f"d{number}/")]
    (folder / f"d{number}").rename(folder.parent / "elsewhere")
    (folder / f"d{number}").symlink_to(folder.parent / "elsewhere")
    assert changed(folder, before) == sorted([".", f"d{number}", *inside])


@pytest.mark.usefixtures("each_way")
def test_what_is_nothing_and_what_is_gone(tmp_path: Path) -> None:
    assert changed(tmp_path, b"") == []
    assert changed(tmp_path, pack([(b"gone", (1, 1))])) == ["gone"]
    with pytest.raises(FileNotFoundError):
        changed(tmp_path / "gone", b"")


@pytest.mark.skipif(bool(stamps.why_missing), reason="needs the extension")
def test_the_extension_tells_of_so_many_at_most(folder: Path) -> None:
    before = packed(folder)
    time.sleep(0.02)
    for path in folder.rglob("file*"):
        path.chmod(0o600)
    assert changed_paths(os.fsencode(folder), before) is None


@pytest.mark.skipif(bool(stamps.why_missing), reason="needs the extension")
@pytest.mark.parametrize("cut", [1, 5, 20, 27])
def test_the_extension_reads_nothing_behind_the_end(folder: Path, cut: int) -> None:
    with pytest.raises(ValueError, match="does not end"):
        changed_paths(os.fsencode(folder), packed(folder)[:-cut])


def test_one_that_was_changed_just_now_is_young(tmp_path: Path) -> None:
    found = tmp_path.lstat()
    assert stamp_of(found, found.st_ctime_ns) == (found.st_ino, YOUNG)
    assert stamp_of(found, found.st_ctime_ns + 2_000_000_000) == (found.st_ino, found.st_ctime_ns)
