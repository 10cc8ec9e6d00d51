"""SIGKILL in the middle of a burst of changes: what was acknowledged is there, nothing else is."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs import burst
from tests.fs.mounting import Mount, git
from tests.fs.tree.test_model import dirty_count, snapshot


def kill_in_a_burst(mount: Mount, plain: Path, seed: int, after_s: float) -> None:
    """`plain` equals the mount before and after."""
    log = mount.directory / f"acknowledged-{seed}"
    command = [sys.executable, burst.__file__, str(mount.path), str(seed), str(log)]
    program = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not log.exists() and program.poll() is None:
        pass
    time.sleep(after_s)  # any moment will do
    assert mount.process is not None
    mount.process.kill()
    assert program.wait(60) != 0
    mount.kill()
    mount.start()
    done = log.read_bytes().count(b"\n")
    burst.replay(plain, seed, done)
    found = snapshot(mount.path)
    if found != snapshot(plain):  # then the step that was under way has happened
        burst.step(plain, seed, done)
        assert found == snapshot(plain), f"seed {seed}, after {done} steps"


def run_bursts(make: Callable[..., Mount], origin: Path, directory: Path, kills: int) -> None:
    generator = random.Random(kills)
    for first in range(0, kills, 10):  # a new mount from time to time
        mount = make().start(segment_bytes=20_000, collect_s=0.01)
        plain = directory / f"plain-{first}"
        git("clone", "-q", str(origin), str(plain), cwd=directory)
        shutil.rmtree(plain / ".git")
        for seed in range(first, min(first + 10, kills)):
            kill_in_a_burst(mount, plain, seed, generator.random() * 0.3)
        mount.restart()  # the sweep of a clean start leaves exactly the files of rows
        mount.stop()
        assert len(mount.upper_files()) == dirty_count(mount)
        assert "Traceback" not in mount.stderr()


def test_kills_in_a_burst(new_mount: Callable[..., Mount], origin: Path, tmp_path: Path) -> None:
    run_bursts(new_mount, origin, tmp_path, kills=5)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_kills_in_a_burst(
    new_mount: Callable[..., Mount], origin: Path, tmp_path: Path
) -> None:
    run_bursts(new_mount, origin, tmp_path, kills=200)
