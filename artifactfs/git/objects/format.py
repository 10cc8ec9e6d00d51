"""The contents of trees, commits and tags, parsed from their raw bytes (``gitformat``).

Names of trees are bytes: git does not say what they are encoded in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from artifactfs.errors import CorruptData
from artifactfs.git.checkout.refused_names import GITS_DEFAULT, NAME_MAX, Protection, is_refused
from artifactfs.git.pack.format import Oid


class TreeEntry(NamedTuple):
    """One name of a tree; `mode` as in the tree object (0o100644, 0o40000, 0o120000, 0o160000…)."""

    name: bytes
    mode: int
    oid: Oid


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """A commit; `commit_time` is the committer's, in seconds since 1970."""

    oid: Oid
    tree: Oid
    parents: tuple[Oid, ...]
    commit_time: int
    message: str


def parse_tree(content: bytes, protection: Protection = GITS_DEFAULT) -> list[TreeEntry]:
    """The entries of a tree object's content, in its order. Raises: CorruptData.

    Names that cannot be checked out are left out (see `is_refused`): everything that shows or
    writes a tree reads it here.
    """
    return [entry for entry in parse_whole_tree(content) if not _is_absent(entry, protection)]


def parse_whole_tree(content: bytes) -> list[TreeEntry]:
    """All entries, also those that must not appear in a working tree. Raises: CorruptData."""
    entries: list[TreeEntry] = []
    position = 0
    end = len(content)
    try:
        while position < end:
            space = content.index(b" ", position)
            nul = content.index(b"\0", space)
            mode = int(content[position:space], 8)
            if not 0 <= mode <= _MAX_MODE:
                raise CorruptData("a tree object has an impossible mode")
            position = nul + 21
            entries.append(TreeEntry(content[space + 1 : nul], mode, content[nul + 1 : position]))
    except ValueError:
        raise CorruptData("a tree object is malformed") from None
    if position != end:
        raise CorruptData("a tree object is cut")
    return entries


_MAX_MODE = 0o177777
_MAX_TIME = 1 << 33
"""Still a number of nanoseconds in 64 bits."""
_TIME = re.compile(rb" *([0-9]{1,20})(?: |$)")


def _is_absent(entry: TreeEntry, protection: Protection) -> bool:
    name = entry.name
    if name.isascii() and b"~" not in name and b"/" not in name and len(name) <= NAME_MAX:
        return name[:1] in (b"", b".") and is_refused(name, entry.mode, protection)
    return is_refused(name, entry.mode, protection)


def parse_commit(oid: Oid, content: bytes) -> CommitInfo:
    """A commit object's content, parsed; a malformed time counts as 0, as for git.

    Raises: CorruptData.
    """
    head, _, message = content.partition(b"\n\n")
    tree: Oid | None = None
    parents: list[Oid] = []
    commit_time = 0
    encoding = "utf-8"
    try:
        for line in head.split(b"\n"):
            key, _, value = line.partition(b" ")
            if key == b"tree":
                tree = bytes.fromhex(value.decode("ascii"))
            elif key == b"parent":
                parents.append(bytes.fromhex(value.decode("ascii")))
            elif key == b"committer":
                commit_time = _time_of(value)
            elif key == b"encoding":
                encoding = value.decode("latin-1")
    except ValueError:
        raise CorruptData(f"commit {oid.hex()} is malformed") from None
    if tree is None or any(len(name) != 20 for name in (tree, *parents)):
        raise CorruptData(f"commit {oid.hex()} lacks a tree or has an impossible parent")
    try:
        text = message.decode(encoding, "replace")
    except (LookupError, ValueError):
        text = message.decode("utf-8", "replace")
    return CommitInfo(oid, tree, tuple(parents), commit_time, text)


def _time_of(signature: bytes) -> int:
    """Seconds since 1970 of ``NAME <EMAIL> SECONDS ZONE``."""
    found = _TIME.match(signature.rpartition(b">")[2])
    return min(int(found[1]), _MAX_TIME) if found is not None else 0


def tag_target(oid: Oid, content: bytes) -> Oid:
    """What an annotated tag points at. Raises: CorruptData."""
    if not content.startswith(b"object ") or len(content) < 47:
        raise CorruptData(f"tag {oid.hex()} is malformed")
    try:
        return bytes.fromhex(content[7:47].decode("ascii"))
    except ValueError:
        raise CorruptData(f"tag {oid.hex()} is malformed") from None
