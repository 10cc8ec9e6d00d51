"""How a mount begins and ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.errors import MountError
from artifactfs.fs.mount import session
from tests.fs.mounting import Mount


def is_mounted(path: Path) -> bool:
    return session.mount_device(str(path)) is not None


def test_it_is_gone_after_a_clean_end(mount: Mount) -> None:
    assert is_mounted(mount.path)
    process = mount.process
    mount.stop()
    assert process is not None
    assert process.returncode == 0
    assert not is_mounted(mount.path)
    assert mount.stderr() == ""


def test_it_ends_even_if_it_is_in_use(mount: Mount) -> None:
    held = open(mount.path / "README")  # noqa: SIM115
    waiting = subprocess.Popen(["sleep", "1000"], cwd=mount.path / "src")
    mount.stop()
    assert not is_mounted(mount.path)
    waiting.kill()
    waiting.wait()
    held.close()


def test_an_unmount_from_outside_ends_it(mount: Mount) -> None:
    subprocess.run(["umount", mount.path], check=True)
    assert mount.process is not None
    assert mount.process.wait(60) == 0


def test_it_can_be_told_to_stop(mount: Mount) -> None:
    mount.ask("stop")
    assert mount.process is not None
    assert mount.process.wait(60) == 0
    assert not is_mounted(mount.path)


def test_mount_again_over_a_clean_end_and_a_kill(mount: Mount) -> None:
    for kill in (False, True, False):
        mount.restart(kill=kill)
        assert (mount.path / "README").read_text() == "hello\n"


def test_options(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(settings={"allow_other": True, "uid": 12, "gid": 34})
    line = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(mount.path) in line
    )
    for option in ("default_permissions", "allow_other", "nosuid", "nodev", "fuse.artifact-fs"):
        assert option in line
    assert "max_read" not in line
    status = (mount.path / "README").stat()
    assert (status.st_uid, status.st_gid) == (12, 34)
    (mount.path / "made").touch()
    assert (mount.path / "made").stat().st_uid == 0


def test_mount_points_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, "is not empty"),
        (tmp_path / "file", "is not a directory"),
        (tmp_path / "absent", "does not exist"),
        (Path("/proc"), "is a mount point already"),
    ):
        with pytest.raises(MountError, match=message):
            session.check_mount_point(str(path))


def test_paths_with_spaces_in_mountinfo(tmp_path: Path) -> None:
    odd = tmp_path / "a b\tc"
    odd.mkdir()
    assert not is_mounted(odd)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", odd], check=True)
    try:
        assert is_mounted(odd)
    finally:
        subprocess.run(["umount", odd], check=True)
