"""Two directory trees side by side: every name, type, mode, size, byte and link target."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """What a user sees of one path. `size` is bytes, 0 for directories."""

    kind: int
    executable: bool
    size: int
    content: bytes
    """SHA-256 of a file, target of a symlink, else nothing; nothing when only `stat` was called."""


def walk(root: bytes, *, content: bool = True) -> Iterator[tuple[bytes, Node]]:
    """Yield (path below `root`, node) of everything but `.git`, also that of submodules."""
    pending = [b""]
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(root, directory)) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                if entry.name == b".git":
                    continue
                yield path, look(os.path.join(root, path), content=content)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)


def look(path: bytes, *, content: bool = True) -> Node:
    """Return the node at `path`; a symlink is not followed."""
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    data = b""
    if kind == stat.S_IFLNK and content:
        data = os.readlink(path)
        assert found.st_size == len(data)
    elif kind == stat.S_IFREG and content:
        with open(path, "rb") as file:
            whole = file.read()
        assert len(whole) == found.st_size, path
        data = sha256(whole).digest()
    size = 0 if kind == stat.S_IFDIR else found.st_size
    return Node(kind, bool(found.st_mode & 0o100), size, data)


def tree(root: Path, *, content: bool = True) -> dict[bytes, Node]:
    """Return everything below `root` by path."""
    return dict(walk(os.fsencode(root), content=content))


def assert_same_tree(ours: Path, theirs: Path, *, content: bool = True) -> int:
    """Compare two trees; return the number of paths. Raises: AssertionError with the first few."""
    left = tree(ours, content=content)
    right = tree(theirs, content=content)
    differences = [
        f"{path!r}: {left.get(path)} here, {right.get(path)} there"
        for path in sorted(left.keys() | right.keys())
        if left.get(path) != right.get(path)
    ]
    assert not differences, "\n".join([f"{len(differences)} differ", *differences[:8]])
    return len(left)
