"""What tests of kernel writes ask of a mount."""

from __future__ import annotations

import os
from pathlib import Path

from tests.fs.gitview.test_fsmonitor_random import plain_status
from tests.fs.mounting import git


def status(mount: Path) -> str:
    """What git says; both with its caches and without."""
    cached = git("status", "--porcelain", cwd=mount)
    assert cached == plain_status(mount)
    return cached


def snapshot(mount: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for top, folders, files in os.walk(mount):
        if ".git" in folders:
            folders.remove(".git")
        for name in (*folders, *files):
            path = Path(top, name)
            seen = path.lstat()
            content = b""
            if path.is_symlink():
                content = os.fsencode(os.readlink(path))
            elif path.is_file():
                content = path.read_bytes()
            links = 0 if path.is_dir() and not path.is_symlink() else seen.st_nlink
            times = 0 if path.is_dir() and not path.is_symlink() else seen.st_mtime_ns
            key = str(path.relative_to(mount))
            found[key] = (seen.st_mode, seen.st_uid, seen.st_gid, links, times, content)
    return found
