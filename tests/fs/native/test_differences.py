"""What overlayfs does otherwise than our own mount: the second table of ``docs/semantics.md``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from tests.fs.conftest import COMMIT_TIME
from tests.fs.expectations import downloads
from tests.fs.mounting import Mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")


@pytest.fixture
def kernel(new_mount: Callable[..., Mount]) -> Mount:
    mount = new_mount()
    mount.native = True
    return mount.start()


def test_what_brings_a_file(kernel: Mount) -> None:
    top = kernel.path
    (top / "README").chmod(0o600)
    os.utime(top / "README")
    os.chown(top / "README", 1234, 1234)
    os.link(top / "README", top / "another")
    (top / "src/f1.c").write_bytes(b"replaced")
    (top / "src/f2.c").rename(top / "f2.c")
    assert downloads(kernel) == []
    os.truncate(top / "src/f3.c", 0)
    subprocess.run(["touch", top / "src/f4.c"], check=True)
    os.chown(top / "link", 1234, 1234, follow_symlinks=False)
    with (top / "docs/a.txt").open("r+b"):
        assert len(downloads(kernel)) == 4


def test_numbers_of_folders_and_files(kernel: Mount) -> None:
    top = kernel.path
    before = (top / "src/f1.c").stat().st_ino
    with (top / "src/f1.c").open("a") as file:
        file.write("more")
    assert (top / "src").stat().st_nlink == 1  # as file systems say that they do not count
    kernel.restart()
    assert (top / "src/f1.c").stat().st_ino != before


def test_times(kernel: Mount) -> None:
    top = kernel.path
    assert (top / "docs").stat().st_mtime_ns == COMMIT_TIME * 10**9
    os.utime(top / "README", ns=(123_456_789, 987_654_321_012_345_678))
    with (top / "run.sh").open("ab") as file:
        file.write(b"x")
    written = (top / "run.sh").stat().st_mtime_ns
    kernel.restart(kill=True)
    status = (top / "README").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (123_456_789, 987_654_321_012_345_678)
    assert (top / "run.sh").stat().st_mtime_ns == written


def test_holes(kernel: Mount) -> None:
    with open(kernel.path / "sparse", "w+b") as file:
        file.seek(10 << 20)
        file.write(b"end")
        file.flush()
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) >= 8 << 20


def test_a_removed_file_goes_on(kernel: Mount) -> None:
    top = kernel.path
    with (top / "README").open("r+b", buffering=0) as file, (top / "big").open("rb") as clean:
        (top / "README").unlink()
        (top / "big").unlink()
        file.write(b"HELLO")
        file.seek(0)
        assert file.read() == b"HELLO\n"
        assert len(clean.read()) == 1 << 20
