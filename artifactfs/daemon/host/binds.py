"""Bind mounts on folders of a mount: its ``.git``, and what is redirected to the local disk.

`mount` and `umount` are programs: looking a path up in the mount must not wait in the process that
answers it. Everything here blocks; call it in a thread.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from artifactfs.daemon.host import mounts
from artifactfs.errors import MountError

DEADLINE_S = 20.0
BUSY_S = 0.5
BUSY_POLL_S = 0.05


def bind(source: Path, folder: Path) -> None:
    """Mount the folder `source` on `folder`. Raises: MountError."""
    _run("mount", "--no-canonicalize", "--bind", "--", str(source), str(folder))


def unbind(folder: Path) -> bool:
    """Unmount what is mounted exactly at `folder`; False where nothing is.

    Tries again for `BUSY_S` while it is in use: a program that has just ended still uses it for a
    moment. Raises: MountError, also where it stays in use.
    """
    end = time.monotonic() + BUSY_S
    was_bound = False
    while mounts.mounts_at(str(folder), follow=False):
        try:
            _run("umount", "--no-canonicalize", "--", str(folder))
            was_bound = True
        except MountError:
            if time.monotonic() > end:
                raise
            time.sleep(BUSY_POLL_S)
    return was_bound


def detach(folder: Path) -> None:
    """Unmount what is mounted last at `folder`; who is in it stays there. Raises: MountError."""
    _run("umount", "--lazy", "--no-canonicalize", "--", str(folder))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MountError(f"{command[0]} failed: {error}") from error
    if done.returncode != 0:
        raise MountError(done.stderr.strip() or f"{command[0]} failed")
