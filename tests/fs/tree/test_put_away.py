"""Files that only the kernel refers to are kept without an inode: nobody sees a difference."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.expectations import wait_for
from tests.fs.mounting import Mount, git
from tests.fs.tree.test_model import differences, snapshot

FILES = 311
"""In the tree of `origin`."""


@pytest.fixture
def cold(new_mount: Callable[..., Mount]) -> Mount:
    """A mount that puts files away as soon as nobody works with them."""
    mount = new_mount()
    mount.first = (
        "import artifactfs.fs.tree.tree as tree\ntree.WARM = 0  # they are put away at once"
    )
    return mount


@pytest.fixture
def plain(origin: Path, tmp_path: Path) -> Path:
    target = tmp_path / "plain"
    git("clone", "-q", str(origin), str(target), cwd=tmp_path)
    shutil.rmtree(target / ".git")
    return target


def test_a_tree_looks_as_on_a_disk(cold: Mount, plain: Path) -> None:
    cold.start()
    before = snapshot(cold.path, exact=True)
    assert differences(snapshot(plain), snapshot(cold.path)) == {}
    assert snapshot(cold.path, exact=True) == before
    cold.restart()
    assert snapshot(cold.path, exact=True) == before


def test_listed_files_take_no_inode(cold: Mount) -> None:
    cold.start()
    subprocess.run(["find", "."], cwd=cold.path, stdout=subprocess.DEVNULL, check=True)
    counted = cold.ask("memory")
    assert counted["inodes"] > FILES
    assert counted["objects"] < 20


def test_what_the_kernel_forgets_is_forgotten(cold: Mount) -> None:
    cold.start()
    snapshot(cold.path)
    many = cold.ask("memory")["inodes"]

    def left_after_a_drop() -> int:
        cold.kernel_forgets()
        inodes: int = cold.ask("memory")["inodes"]
        return inodes

    wait_for(lambda: left_after_a_drop() < many / 4)  # the kernel tells later


def test_changes_of_files_that_were_put_away(cold: Mount, plain: Path) -> None:
    cold.start()
    for top in (cold.path, plain):
        list(os.scandir(top / "many"))
        with open(top / "many/017", "rb+") as held:  # open while the others are put away
            for number in range(20, 60):
                (top / f"many/{number:03}").read_bytes()
            held.write(b"X")
        (top / "many/018").unlink()
        (top / "many/019").rename(top / "many/moved")
        (top / "many/020").chmod(0o600)
        os.link(top / "many/021", top / "src/linked")
        os.truncate(top / "many/022", 1)
        (top / "many").rename(top / "src/many")
        (top / "src/many/023").write_text("written\n")
        (top / "src/many/024").rename(top / "src/many/025")
    assert differences(snapshot(plain), snapshot(cold.path)) == {}
    cold.restart(kill=True)
    assert differences(snapshot(plain), snapshot(cold.path)) == {}


def test_a_switch_below_files_that_were_put_away(origin: Path, tmp_path: Path, cold: Mount) -> None:
    """Every entry is at another position afterwards."""
    work = tmp_path / "work"
    git("clone", "-q", str(origin), str(work), cwd=tmp_path)
    one = git("rev-parse", "HEAD", cwd=work).strip()
    (work / "many/000").unlink()
    (work / "many/001").write_text("other\n")
    (work / "many/0000").write_text("new\n")
    (work / "many/0001").write_text("new\n")
    git("add", "-A", cwd=work)
    git("commit", "-qm", "two", cwd=work)
    two = git("rev-parse", "HEAD", cwd=work).strip()
    cold.gitdir, cold.commit = work / ".git", one
    cold.start()
    opened = {name: os.open(cold.path / "many" / name, os.O_RDONLY) for name in ("001", "250")}
    before = snapshot(cold.path / "many", exact=True)
    cold.ask("switch", commit=two)
    assert os.read(opened["001"], 100) == b"1\n"
    assert os.read(opened["250"], 100) == b"250\n"
    assert differences(snapshot(work / "many"), snapshot(cold.path / "many")) == {}
    after = snapshot(cold.path / "many", exact=True)
    assert {n: s for n, s in after.items() if n > "001"} == {
        n: s for n, s in before.items() if n > "001"
    }
    cold.ask("switch", commit=one)
    assert set(snapshot(cold.path / "many")) == set(before)
    for descriptor in opened.values():
        os.close(descriptor)
