"""Which kind of writes `auto` takes, by where the state root is; and who says why."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.kernel_mount import status
from tests.e2e.mount_table import clear_mounts
from tests.e2e.processes import DaemonProcess, ServedRepository

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")


@contextmanager
def disk(kind: str, folder: Path) -> Iterator[Path]:
    """A file system of that kind."""
    top, image = folder / "disk", folder / "image"
    top.mkdir()
    if kind in ("xfs", "btrfs"):
        with image.open("wb") as file:
            file.truncate(400 << 20)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
        command = ["mount", "-o", "loop", image, top]
    elif kind == "overlay":
        layers = [folder / name for name in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        options = "lowerdir={},upperdir={},workdir={}".format(*layers)
        command = ["mount", "-t", "overlay", "-o", options, "none", top]
    else:
        command = ["mount", "-t", kind, "none", top]
    subprocess.run(command, check=True)
    try:
        yield top
    finally:
        clear_mounts(top)
        subprocess.run(["umount", "-l", top], check=True)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tmpfs", "the kernel can"),
        ("overlay", "is on an overlayfs itself, as in a container without a volume"),
        pytest.param("xfs", "the kernel can", marks=pytest.mark.long),
        pytest.param("btrfs", "the kernel can", marks=pytest.mark.long),
    ],
)
def test_the_file_system_decides(
    idle_daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    tmp_path: Path,
    kind: str,
    expected: str,
) -> None:
    if kind in ("xfs", "btrfs") and shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"there is no mkfs.{kind}")
    with disk(kind, tmp_path) as top:
        idle_daemon.state = top / "state"
        try:
            idle_daemon.start()
            mount = idle_daemon.add_repo("odd", remote_repo().url, "--writes", "auto")
            writes = idle_daemon.status("odd")["writes"]
            assert expected in writes["why"]
            assert writes["kind"] == ("kernel" if expected == "the kernel can" else "fuse")
            (mount / "src").rename(mount / "moved")
            (mount / "moved/new").write_text("new\n")
            assert "?? moved/" in status(mount)
            doctor = idle_daemon.run("doctor", "--offline", "-v", check=False).stdout
            if writes["kind"] == "fuse":
                assert "kernel-writes is off: the state root" in doctor
            else:
                assert "kernel-writes" in doctor and "kernel-writes is off" not in doctor
        finally:
            idle_daemon.clean_up()
