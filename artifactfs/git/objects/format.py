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
    """One name of a tree; `mode` as in the tree object (0o100644, 0o40000, 0o120000, 0o160000…);
    what is of none of these kinds is a gitlink, as for git."""

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
    entries = parse_whole_tree(content)
    if are_plain(entries):
        return entries
    return [entry for entry in entries if not is_absent(entry, protection)]


def are_plain(entries: list[TreeEntry]) -> bool:
    """Whether no name is one that could be refused: as in nearly all trees, and 0.1 us each."""
    names = b"/".join([entry.name for entry in entries])
    if not names.isascii() or b"~" in names or b"/." in b"/" + names:
        return False
    # What is left to look for is a slash, no name at all, and a long one.
    if names.count(b"/") >= max(len(entries), 1) or b"//" in b"/%b/" % names:
        return False
    return all(len(entry.name) <= NAME_MAX for entry in entries)


def parse_whole_tree(content: bytes) -> list[TreeEntry]:
    """All entries, also those that must not appear in a working tree. Raises: CorruptData."""
    found = _ENTRY.findall(content)
    names = [name for _, name, _ in found]
    modes = [mode for mode, _, _ in found]
    if sum(map(len, names)) + sum(map(len, modes)) + 22 * len(found) != len(content):
        raise CorruptData("a tree object is malformed or cut")
    numbers = {mode: int(mode, 8) for mode in set(modes)}
    if any(number > _MAX_MODE for number in numbers.values()):
        raise CorruptData("a tree object has an impossible mode")
    for mode, number in numbers.items():
        if number & _KIND not in _KINDS:
            numbers[mode] = _GITLINK  # as `canon_mode` in git's object.h
    return [TreeEntry(name, numbers[mode], oid) for mode, name, oid in found]


_ENTRY = re.compile(rb"([0-7]{1,12}) ([^\0]*)\0(.{20})", re.DOTALL)
_MAX_MODE = 0o177777
_KIND = 0o170000
_GITLINK = 0o160000
_KINDS = frozenset((0o100000, 0o040000, 0o120000, _GITLINK))
_MAX_TIME = 1 << 33
"""Still a number of nanoseconds in 64 bits."""
_TIME = re.compile(rb" *([0-9]{1,20})(?: |$)")


def is_absent(entry: TreeEntry, protection: Protection) -> bool:
    """As `is_refused`, quickly for usual names."""
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
