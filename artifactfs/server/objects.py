"""Reading objects in the server's own process, by libgit2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pygit2

BLOB = 3


def only_blobs(gitdir: Path, oids: Sequence[bytes]) -> bool:
    """True if each of these hex oids is a blob of the repository. Reads headers only."""
    odb = pygit2.Odb(str(gitdir / "objects"))
    try:
        return all(odb.read_header(oid.decode())[0] == BLOB for oid in oids)
    except (KeyError, ValueError, pygit2.GitError):
        return False
