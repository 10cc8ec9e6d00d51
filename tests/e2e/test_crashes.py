"""Processes are killed at bad moments, and the data on the wire is broken."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.comparison import assert_same_tree, tree
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.mount_table import mounted_at, times_mounted
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until

READ_ALL = """
import os, sys
while True:
    for top, _, names in os.walk(sys.argv[1]):
        for name in names:
            try:
                with open(os.path.join(top, name), "rb") as file:
                    file.read()
            except OSError:
                pass
"""


def has_ended(pid: int) -> bool:
    """Tell whether the process is gone, or a zombie."""
    return not os.path.exists(f"/proc/{pid}/fd/0")


def readable(mount: Path) -> bool:
    """Asks for more than a listing, which the kernel keeps beyond the death of a worker."""
    with contextlib.suppress(OSError):
        os.statvfs(mount)  # which the kernel's overlayfs answers above a dead mount of ours
        (mount / "README.md").read_bytes()
        return "README.md" in os.listdir(mount)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_worker_killed_during_reads_is_back(
    mounted: Path, daemon: DaemonProcess, odd_repository: OddRepository, number: signal.Signals
) -> None:
    reader = subprocess.Popen([sys.executable, "-c", READ_ALL, str(mounted)])
    try:
        for _ in range(3):
            worker = daemon.worker(mounted)
            os.kill(worker, number)
            wait_until(partial(has_ended, worker), "the end")
            wait_until(lambda: readable(mounted), "the mount after a crash")
            assert (mounted / "README.md").read_bytes() == odd_repository.files[b"README.md"]
    finally:
        reader.kill()
        reader.wait()
    assert times_mounted(mounted) == 1


def test_daemon_killed_and_started_again(
    mounted: Path, daemon: DaemonProcess, odd_repository: OddRepository
) -> None:
    (mounted / "README.md").read_bytes()
    before = {path.name: path.lstat() for path in mounted.iterdir() if path.name != ".git"}
    worker = daemon.worker(mounted)
    daemon.kill()
    assert not has_ended(worker) and readable(mounted)
    daemon.start()
    wait_until(lambda: has_ended(worker) and readable(mounted), "another worker")
    assert times_mounted(mounted) == 1
    assert (mounted / "LICENSE").read_bytes() == odd_repository.files[b"LICENSE"]
    after = {path.name: path.lstat() for path in mounted.iterdir()}
    for name, found in before.items():
        assert after[name].st_ino == found.st_ino
        assert after[name].st_mtime_ns == found.st_mtime_ns


def test_everything_killed_and_started_again(mounted: Path, daemon: DaemonProcess) -> None:
    worker = daemon.worker(mounted)
    daemon.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    daemon.start()
    wait_until(lambda: readable(mounted), "the mount after a new start")


def test_sigterm_unmounts_and_leaves_nothing(mounted: Path, daemon: DaemonProcess) -> None:
    pid = daemon.pid
    worker = daemon.worker(mounted)
    assert daemon.stop() == 0
    assert not mounted_at(mounted)
    assert not os.path.exists(f"/proc/{pid}")
    wait_until(lambda: not os.path.exists(f"/proc/{worker}"), "the worker's end")


def test_registered_without_a_daemon_is_mounted_at_its_start(
    idle_daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    mount = idle_daemon.add_repo("odd", remote_repo().url)
    idle_daemon.start()
    wait_until(lambda: readable(mount), "the mount")


@pytest.mark.parametrize("fault", ["truncated", "corrupt"])
def test_broken_packs_are_never_shown(
    impatient: Path,
    proxy: DelayProxy,
    odd_repository: OddRepository,
    fault: str,
) -> None:
    os.listdir(impatient / "assets")
    path = impatient / "assets/logo.png"
    expected = odd_repository.files[b"assets/logo.png"]
    if fault == "truncated":
        proxy.truncate_after = 20_000
    else:
        proxy.corrupt_at = 20_000
    with pytest.raises(OSError) as caught:
        assert path.read_bytes() != expected, "the fault did not happen"
        raise AssertionError("other bytes than those of the blob were read")
    assert caught.value.errno in {errno.EIO, errno.ETIMEDOUT}
    proxy.truncate_after = proxy.corrupt_at = None
    wait_until(lambda: read_or_none(path) == expected, "the next try")
    subprocess.run(
        ["git", "-C", str(impatient), "fsck", "--connectivity-only"],
        check=True,
        capture_output=True,
    )


def read_or_none(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def test_a_fault_now_and_then_changes_no_byte(
    impatient: Path, proxy: DelayProxy, odd_repository: OddRepository, tmp_path: Path
) -> None:
    subprocess.run(
        ["git", "clone", "--quiet", str(odd_repository.path), str(tmp_path / "clone")], check=True
    )
    for at in (700, 3_000, 9_000, 60_000):
        proxy.corrupt_at = at
        with contextlib.suppress(OSError):
            tree(impatient / "src")
        proxy.corrupt_at = None
        proxy.truncate_after = at
        with contextlib.suppress(OSError):
            tree(impatient / "many")
        proxy.truncate_after = None
    wait_until(lambda: read_or_none(impatient / "LICENSE"), "the remote's recovery")
    assert_same_tree(impatient, tmp_path / "clone")
