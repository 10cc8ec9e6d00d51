"""``objects/info/alternates`` of a gitdir: the shared cache, and the object directory of its mount.

The cache may have another place than it had: a state root that was moved or restored.

The mount's object directory (see ``fs/gitview/offered.py``) is named by way of the folder
``artifactfs/offered`` of the gitdir, for good. It has no objects, and names the directory in the
mount as an alternate of its own only while there is a mount: git complains of alternates that do
not exist. Neither our own object database nor a git of ours may look into the mount that we serve:
the one passes the folder over, the other sees other alternates (`apart`).
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from artifactfs.git.apart import is_offered, make_apart
from artifactfs.paths import RepoLayout, StateLayout
from artifactfs.system.files import replace_file

log = logging.getLogger(__name__)

_FOLDER = Path("artifactfs", "offered")


def offer(gitdir: Path, line: bytes) -> None:
    """Let git see the object directory that `line` of an alternates file names. Raises: OSError."""
    folder = gitdir.resolve() / _FOLDER
    (folder / "info").mkdir(parents=True, exist_ok=True)
    make_apart(gitdir)  # before a git of ours could be led into the mount
    replace_file(folder / "info" / "alternates", line)
    alternates = gitdir / "objects" / "info" / "alternates"
    try:
        content = alternates.read_bytes()
    except FileNotFoundError:
        content = b""
    named = os.fsencode(folder)
    if named not in content.splitlines() and b"\n" not in named:
        if content and not content.endswith(b"\n"):
            content += b"\n"
        alternates.parent.mkdir(exist_ok=True)
        replace_file(alternates, content + named + b"\n")


def withdraw(gitdir: Path) -> None:
    """There is no mount (any more). Raises: OSError."""
    with suppress(FileNotFoundError, NotADirectoryError):
        (gitdir / _FOLDER / "info" / "alternates").unlink()


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
