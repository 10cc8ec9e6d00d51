"""What the tests of docs/semantics.md have in common."""

from __future__ import annotations

import ctypes
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.mounting import Mount

NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)


def failing(number: int) -> pytest.RaisesExc[OSError]:
    def matches(error: OSError) -> bool:
        return error.errno == number

    return pytest.RaisesExc(OSError, check=matches)


def everything_but_device(path: Path) -> tuple[object, ...]:
    """`st_dev` is another one after each mount."""
    status = path.stat()
    return status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns


def downloads(mount: Mount) -> list[str]:
    return [line for line in mount.log() if line.startswith("hydrate")]


def as_nobody(mount: Mount, script: str) -> subprocess.CompletedProcess[str]:
    arguments = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    return subprocess.run(
        [*arguments, "sh", "-c", script], cwd="/", capture_output=True, text=True, check=False
    )


def without_fsetid(script: str) -> subprocess.CompletedProcess[str]:
    """Run as root that may not give files set-ID bits of its own."""
    return subprocess.run(
        ["setpriv", "--bounding-set=-fsetid", "--inh-caps=-fsetid", "sh", "-c", script],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
