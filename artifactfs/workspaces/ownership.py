"""Who has a workspace open, so that what a killed program left can be told from what is in use.

An open workspace has a file in ``STATE/workspaces``, locked by flock(2) for as long as the process
lives that has opened it, however that ends. One that was left well has none: it is a repository
like any other, or gone. A file that nobody holds was left by a process that was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import AlreadyExists, StateError
from artifactfs.paths import StateLayout, check_repo_name
from artifactfs.system.locks import open_lock_file, try_lock


@dataclass(slots=True)
class Claim:
    """A workspace that this process has open."""

    name: str
    _path: Path
    _fd: int

    def release(self, *, left_well: bool = True) -> None:
        """Have it open no more. Unless it was `left_well`, ``gc`` finds it."""
        if self._fd < 0:
            return
        if left_well:
            self._path.unlink(missing_ok=True)  # before the lock goes: nobody else has it yet
        os.close(self._fd)
        self._fd = -1


def claim(state: StateLayout, name: str) -> Claim:
    """Raises: AlreadyExists where a living process has it open, InvalidInput, StateError."""
    check_repo_name(name)
    path = state.workspaces / name
    try:
        for directory in (state.root, path.parent):  # `mode` is not that of parents
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = _lock(path)
    except OSError as error:
        raise StateError(f"cannot create {path}: {error.strerror}") from error
    if found is None:
        raise AlreadyExists(
            f"the workspace {name} is open in another process", hint="choose another name"
        )
    return found


def abandoned(state: StateLayout) -> Iterator[Claim]:
    """The workspaces of processes that were killed, each claimed; the caller releases it.

    Raises: StateError.
    """
    try:
        paths = sorted(state.workspaces.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"cannot read {state.workspaces}: {error.strerror}") from error
    for path in paths:
        found = _lock(path, make=False)
        if found is not None:
            yield found


def _lock(path: Path, *, make: bool = True) -> Claim | None:
    """None where another has it, or where it is gone. Raises: OSError."""
    while make or path.exists():
        fd = open_lock_file(path)
        if not try_lock(fd):
            os.close(fd)
            return None
        try:
            if os.path.samestat(os.fstat(fd), path.stat()):
                return Claim(path.name, path, fd)
        except FileNotFoundError:
            pass  # left well meanwhile
        os.close(fd)
    return None
