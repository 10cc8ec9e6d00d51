"""Which folders git's index may have something in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.fs.native.tracked import TrackedPaths
from tests.fs.mounting import git

ALL = {b"src/", b"src/deep/", b"sub/", b"README/", b"new/", b"rc/"}
TRACKED = {b"src/", b"src/deep/", b"sub/", b"README/"}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "src/deep").mkdir(parents=True)
    (top / "src/deep/file").write_text("1")
    (top / "README").write_text("1")
    git("init", "-q", cwd=top)
    git("config", "core.untrackedCache", "true", cwd=top)
    git("add", ".", cwd=top)
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub", cwd=top)
    return top


def among(top: Path, paths: set[bytes] = ALL) -> set[bytes]:
    return set(TrackedPaths(top / ".git/index").among(paths))


def test_what_has_entries(top: Path) -> None:
    """A path that ends like another may be taken for it: that costs git a look."""
    assert among(top) == TRACKED | {b"rc/"}
    assert among(top, {b"new/"}) == among(top, set()) == set()


def test_what_is_untracked_stands_in_the_index_too(top: Path) -> None:
    (top / "new").mkdir()
    (top / "new/file").touch()
    git("status", cwd=top)
    assert b"new/\0" in (top / ".git/index").read_bytes()
    assert among(top, {b"new/"}) == set()
    git("add", "new", cwd=top)
    git("status", cwd=top)
    assert among(top, {b"new/"}) == {b"new/"}


@pytest.mark.parametrize(
    "change",
    [
        lambda top: git("update-index", "--index-version=4", cwd=top),
        lambda top: git("update-index", "--split-index", cwd=top),
        lambda top: (top / ".git/index").write_bytes(b""),
        lambda top: (top / ".git/index").write_bytes(b"DIRC"),
    ],
    ids=["version 4", "split", "empty", "cut"],
)
def test_where_paths_do_not_stand_in_it_all_may_have(
    top: Path, change: Callable[[Path], object]
) -> None:
    change(top)
    assert among(top) == ALL


def test_a_changed_index_is_asked_again(top: Path) -> None:
    index = top / ".git/index"
    tracked = TrackedPaths(index)
    assert tracked.among({b"new/"}) == []
    before = index.read_bytes()
    (top / "new").mkdir()
    (top / "new/file").touch()
    git("add", "new", cwd=top)
    assert tracked.among({b"new/"}) == [b"new/"]
    index.write_bytes(before)
    assert tracked.among({b"new/"}) == [b"new/"], "a git may still have the one before"
    index.unlink()
    assert TrackedPaths(index).among({b"new/"}) == []
    os.mkdir(index)
    assert tracked.among({b"other/"}) == [b"other/"]
