"""CPUs are kept from halting while there are many requests, and only then."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from artifactfs.fs.kernel.wakefulness import DEVICE
from tests.fs.expectations import wait_for
from tests.fs.mounting import Mount

needs_device = pytest.mark.skipif(
    not os.access(DEVICE, os.W_OK), reason=f"{DEVICE} cannot be opened here"
)


def is_held(mount: Mount) -> bool:
    assert mount.process is not None
    folder = f"/proc/{mount.process.pid}/fd"
    for name in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{name}") == DEVICE:
                return True
        except FileNotFoundError:
            continue
    return False


@needs_device
def test_held_in_a_burst(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(keep_awake=True, burst_s=2)  # also on a busy machine
    os.stat(mount.path / "README")
    assert not is_held(mount)
    script = "import os\nwhile True: os.chmod('README', 0o600); os.chmod('README', 0o644)"
    program = subprocess.Popen(["python3", "-c", script], cwd=mount.path)
    try:
        wait_for(lambda: is_held(mount))
    finally:
        program.kill()
        program.wait()
    wait_for(lambda: not is_held(mount))


def test_not_unless_it_was_asked_for(mount: Mount) -> None:
    for number in range(300):
        os.chmod(mount.path / "README", 0o600 + number % 2)
        assert not is_held(mount)


def test_a_mount_works_without_the_device(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(keep_awake=True, burst_s=60, latency_device="/dev/full/absent")
    for number in range(300):
        (mount.path / f"{number}").write_text("x")
    assert len(os.listdir(mount.path)) > 300
    assert mount.stderr().count("CPUs are not kept awake") == 1
