"""Keeps the state root from others: it holds the contents of private repositories, and tokens.

A folder that was made before, by ``mkdir /srv/artifact-fs`` say, is open to all. Where it holds
nothing but ours it is closed; what is in it is closed in any case.
"""

from __future__ import annotations

import logging
import stat
from pathlib import Path

from artifactfs.paths import StateLayout

log = logging.getLogger(__name__)

_OTHERS = 0o077
_OURS = (
    "registry.db",
    "control.sock",
    "daemon.lock",
    "daemon.log",
    "mount-root",
    "cache",
    "repos",
    ".trial-",
)


def keep_private(state: StateLayout) -> None:
    """Take from others what they may do in the state root. Raises: OSError."""
    for folder in (state.repos, state.cache):
        folder.mkdir(mode=0o700, exist_ok=True)
    inside = list(state.root.iterdir())
    ours = [path for path in inside if path.name.startswith(_OURS)]
    for path in ours:
        _close(path)
    if len(ours) == len(inside):
        _close(state.root)
    elif _is_open(state.root):
        log.warning("%s holds other things too: it stays open to others", state.root)


def _is_open(path: Path) -> bool:
    return bool(path.lstat().st_mode & _OTHERS)


def _close(path: Path) -> None:
    found = path.lstat()
    if found.st_mode & _OTHERS and not stat.S_ISLNK(found.st_mode):
        try:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
        except OSError as error:
            log.warning("%s stays open to others: %s", path, error.strerror)
