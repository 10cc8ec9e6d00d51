"""Folders in which what arrives lies until it is whole: an object directory of its own each, below
a gitdir's ``artifactfs``. They block on the disk.

Each is named after its process, so that several may be in use, and what a process left that was
killed is found and removed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from artifactfs.git.surroundings import OWN_FOLDER

_NAME = re.compile(
    r"(?:history|fetch|commit-graph|(?:commit|tree)-[0-9a-f]{40})"
    r"(?:\.(?P<pid>\d+)-[0-9a-f]{8}|\.[0-9a-f]+)?"
)
"""Earlier versions gave no number, or one that was no process's."""

_in_use: set[str] = set()
"""Names of those of this process."""


def staging_folder(gitdir: Path, name: str) -> Path:
    """An empty folder for `name` (``history``, ``commit-OID``…): see `_NAME`. Raises: OSError."""
    own = gitdir / OWN_FOLDER
    _remove_left(own)
    folder = own / f"{name}.{os.getpid()}-{secrets.token_hex(4)}"
    _in_use.add(folder.name)
    folder.mkdir(parents=True)
    return folder


def remove_staging(folder: Path) -> None:
    """What is in it is in place, or of no use."""
    shutil.rmtree(folder, ignore_errors=True)
    _in_use.discard(folder.name)


def _remove_left(own: Path) -> None:
    for folder in own.iterdir() if own.is_dir() else ():
        found = _NAME.fullmatch(folder.name)
        if found is not None and not _is_used(folder.name, found["pid"]):
            shutil.rmtree(folder, ignore_errors=True)


def _is_used(name: str, pid: str | None) -> bool:
    if pid is None or int(pid) == os.getpid():
        return name in _in_use
    return Path("/proc", pid).exists()
