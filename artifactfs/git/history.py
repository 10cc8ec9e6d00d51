"""The blobs that `git blame` and `git log -p` of a path will ask for.

In a partial clone git fetches old versions one at a time, a process and a connection each. Listing
them needs only commits and trees, which are here, so they can be fetched in one batch before git
asks. ``git log --raw`` names both sides of every change; rename detection is off, because it would
read the blobs. A copy of the file under an older name is therefore not part of the list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from artifactfs.git.command import run_git
from artifactfs.git.objects import Oid

_GITLINK = b"160000"
_NO_OBJECT = b"0" * 40


async def blobs_of_history(
    gitdir: Path, paths: Sequence[str], *, rev: str = "HEAD", deadline_s: float = 300.0
) -> list[Oid]:
    """Every version of `paths` (files or directories) in the history of `rev`, newest first.

    Paths are relative to the top of the working tree and taken literally. Blocks on the network
    only where commits of the history are not here yet, within `deadline_s`.
    Raises: GitFailed (no such revision, deadline).
    """
    output = await run_git(
        "--literal-pathspecs",
        "log",
        "-m",
        "--raw",
        "--no-abbrev",
        "--no-renames",
        "--format=",
        "-z",
        rev,
        "--",
        *paths,
        gitdir=gitdir,
        deadline_s=deadline_s,
    )
    return list(dict.fromkeys(_blobs_of_raw(output)))


def _blobs_of_raw(output: bytes) -> Iterator[Oid]:
    """The blob oids of ``--raw -z`` output: ``:mode mode oid oid status NUL path NUL`` repeated."""
    for field in output.split(b"\0"):
        record = field.lstrip(b"\n")
        if not record.startswith(b":"):
            continue
        parts = record[1:].split(b" ")
        if len(parts) != 5:
            continue
        old_mode, new_mode, old, new, _status = parts
        for mode, name in ((new_mode, new), (old_mode, old)):
            if name != _NO_OBJECT and mode != _GITLINK:
                yield bytes.fromhex(name.decode("ascii"))
