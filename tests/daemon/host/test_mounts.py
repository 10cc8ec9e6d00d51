"""Dead mounts are told from living ones, and cleared; with real FUSE mounts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifactfs.daemon.host import mounts
from artifactfs.daemon.host.mounts import MountState
from artifactfs.errors import MountError
from artifactfs.system.mountinfo import parse_mountinfo

SERVE = """
import sys, pyfuse3, trio
class Empty(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = inode, 0o40755
        return entry
    async def opendir(self, inode, ctx):
        return inode
    async def readdir(self, fh, start, token):
        return None
pyfuse3.init(Empty(), sys.argv[1], {"fsname=test", "subtype=test"})
print("mounted", flush=True)
trio.run(pyfuse3.main)
pyfuse3.close()
"""


@contextmanager
def fuse_process(mount_point: Path) -> Iterator[subprocess.Popen[str]]:
    mount_point.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(mount_point)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "mounted\n"
        yield process
    finally:
        while mounts.mounts_at(str(mount_point)):
            mounts.detach(str(mount_point))
        process.kill()
        process.wait()


def test_a_dead_mount_is_cleared(tmp_path: Path) -> None:
    mount_point = tmp_path / "a mount"
    with fuse_process(mount_point) as process:
        assert mounts.probe(str(mount_point)) is MountState.ALIVE
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert mounts.probe(str(mount_point)) is MountState.DEAD
        assert mounts.clear_dead(str(mount_point)) == 1
        assert mounts.probe(str(mount_point)) is MountState.NONE
        assert mounts.clear_dead(str(mount_point)) == 0


@pytest.mark.parametrize("what", ["parent", "mount point"])
def test_behind_a_symlink(tmp_path: Path, what: str) -> None:
    """The kernel names a mount by its real path."""
    mount_point = tmp_path / "real" / "mount"
    mount_point.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(mount_point.parent if what == "parent" else mount_point)
    way = str(link / "mount" if what == "parent" else link)
    with fuse_process(mount_point) as process:
        assert mounts.probe(way) is MountState.ALIVE
        process.kill()
        process.wait()
        assert mounts.probe(way) is MountState.DEAD
        assert mounts.clear_dead(way) == 1


def test_dead_mounts_that_cover_each_other_are_cleared(tmp_path: Path) -> None:
    mount_point = tmp_path / "mount"
    with fuse_process(mount_point) as first:
        first.kill()
        first.wait()
        # Over a dead mount nothing can be mounted by path, so the second goes below another name.
        mounts.detach(str(mount_point))
        with fuse_process(mount_point) as second, fuse_process(mount_point) as third:
            for process in (second, third):
                process.kill()
                process.wait()
            assert mounts.clear_dead(str(mount_point)) == 2


def test_a_living_mount_is_not_touched(tmp_path: Path) -> None:
    mount_point = tmp_path / "mount"
    with fuse_process(mount_point):
        with pytest.raises(MountError, match="in use"):
            mounts.clear_dead(str(mount_point))
        assert mounts.probe(str(mount_point)) is MountState.ALIVE


def test_unmount_refuses_while_in_use(tmp_path: Path) -> None:
    mount_point = tmp_path / "mount"
    with fuse_process(mount_point) as process:
        user = subprocess.Popen(["sleep", "60"], cwd=mount_point)
        try:
            with pytest.raises(MountError, match="busy"):
                mounts.unmount(str(mount_point))
        finally:
            user.kill()
            user.wait()
        mounts.unmount(str(mount_point))
        assert process.wait(60) == 0
        assert mounts.probe(str(mount_point)) is MountState.NONE


def test_abort_ends_a_connection(tmp_path: Path) -> None:
    mount_point = tmp_path / "mount"
    with fuse_process(mount_point) as process:
        assert mounts.abort(str(mount_point))
        assert mounts.probe(str(mount_point)) is MountState.DEAD
        process.kill()
    assert not mounts.abort(str(mount_point))


def test_mountinfo_with_odd_names() -> None:
    line = r"36 35 0:98 / /mnt/a\040b\134c rw,nosuid - fuse.artifactfs art\011fs rw"
    (entry,) = parse_mountinfo(line)
    assert entry.mount_point == "/mnt/a b\\c"
    assert entry.source == "art\tfs"
    assert entry.minor == 98
    assert entry.is_fuse
