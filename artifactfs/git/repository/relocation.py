"""A state root that was moved or restored: its gitdirs name its old place."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from artifactfs.git.apart import is_offered
from artifactfs.paths import RepoLayout, StateLayout
from artifactfs.system.files import replace_file

log = logging.getLogger(__name__)


def follow_state_root(state: StateLayout, repo: RepoLayout) -> None:
    """Have the gitdir name the cache of this state root.

    Where that fails, the mount works all the same; git in it may not.
    """
    try:
        _repoint_alternates(repo.gitdir / "objects" / "info" / "alternates", state.shared_objects)
    except OSError as error:
        log.warning("the gitdir cannot be made to name %s: %s", state.root, error)


def _repoint_alternates(path: Path, cache: Path) -> None:
    """`cache` in the place of a cache that is gone; every other alternate stays as it is.

    Git complains, at every command, of alternates that do not exist.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    lines: list[bytes] = []
    for line in content.splitlines():
        place = Path(os.fsdecode(line))
        if place.is_absolute() and not place.is_dir():
            if is_offered(place):
                continue
            if place.parts[-2:] == cache.parts[-2:]:
                line = os.fsencode(cache)
        if line not in lines:
            lines.append(line)
    if os.fsencode(cache) not in lines:
        lines.append(os.fsencode(cache))
    wanted = b"".join(line + b"\n" for line in lines)
    if wanted != content:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, wanted)
