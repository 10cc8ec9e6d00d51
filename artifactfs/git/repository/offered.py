"""The alternate by which git sees the object directory of a mount (see ``fs/gitview/offered.py``).

``objects/info/alternates`` names the folder ``artifactfs/offered`` of the gitdir, for good. It has
no objects, and names the directory in the mount as an alternate of its own only while there is a
mount: git complains of alternates that do not exist. Neither our own object database nor a git of
ours may look into the mount that we serve: the one passes the folder over, the other sees other
alternates (`apart`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from artifactfs.git.apart import make_apart
from artifactfs.system.files import replace_file

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
