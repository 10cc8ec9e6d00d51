"""The extensions of a primed index: cache tree, fsmonitor, untracked cache (``gitformat-index``).

With TREE, `git commit` and `git status` need not read trees; with FSMN all entries are trusted
without a `stat`; with UNTR no directory is read. The formats of git 2.39, as measured:

- FSMN, version 2: token, NUL, and the bitmap of the entries that are *not* trusted.
- UNTR: ident ``Location WORKTREE, system Linux`` and NUL; `dir_flags` of a plain `git status`;
  directories in depth-first order, children sorted by plain bytes (git searches by halving);
  the hash of an exclude file is that of its content and a newline, except that a tracked
  .gitignore that no attribute converts has its own oid. A wrong hash only costs time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from artifactfs.git.pack.format import Oid, encode_base_distance, object_id

DIRECTORY_SIZE = 4096
"""`st_size` of a directory of the mount."""

_DIR_FLAGS = 6
"""DIR_SHOW_OTHER_DIRECTORIES | DIR_HIDE_EMPTY_DIRECTORIES: what `git status` asks for."""

_NO_OID = bytes(20)
_WORD = 64


@dataclass(slots=True)
class Folder:
    """A directory of the index's tree. `entries` counts the index entries below it."""

    name: bytes
    oid: Oid
    ino: int
    entries: int = 0
    folders: list[Folder] = field(default_factory=list)
    ignore: Oid | None = None
    """The hash by which git knows this directory's .gitignore; None where it has none."""
    shown: bool = True
    """Whether the working tree has the directory."""

    def shown_folders(self) -> list[Folder]:
        """Those that the working tree has, by name."""
        return sorted((f for f in self.folders if f.shown), key=lambda folder: folder.name)


@dataclass(frozen=True, slots=True)
class DirectoryStat:
    """What the mount reports of every clean directory."""

    time_ns: int
    uid: int
    gid: int

    def encode(self, ino: int) -> bytes:
        seconds, nanoseconds = divmod(self.time_ns, 1_000_000_000)
        return struct.pack(
            ">9L",
            seconds & 0xFFFFFFFF,
            nanoseconds,
            seconds & 0xFFFFFFFF,
            nanoseconds,
            0,
            ino & 0xFFFFFFFF,
            self.uid,
            self.gid,
            DIRECTORY_SIZE,
        )


def extension(signature: bytes, payload: bytes) -> bytes:
    """An extension as it stands in the index file."""
    return signature + struct.pack(">L", len(payload)) + payload


def encode_cache_tree(root: Folder) -> bytes:
    """TREE: the oid of every directory."""
    out: list[bytes] = []
    for folder in _depth_first(root, lambda folder: folder.folders):
        out.append(b"%b\0%d %d\n" % (folder.name, folder.entries, len(folder.folders)))
        out.append(folder.oid)
    return extension(b"TREE", b"".join(out))


def encode_fsmonitor(token: str, untrusted: Iterable[int], count: int) -> bytes:
    """FSMN: every one of the `count` entries is trusted, except the numbers in `untrusted`."""
    bitmap = encode_ewah(untrusted, count)
    head = struct.pack(">L", 2) + token.encode() + b"\0"
    return extension(b"FSMN", head + struct.pack(">L", len(bitmap)) + bitmap)


def encode_untracked_cache(
    root: Folder, *, worktree: bytes, stat: DirectoryStat, exclude: Oid, excludes_file: Oid
) -> bytes:
    """UNTR: no directory has an untracked file.

    `exclude` and `excludes_file` are the `exclude_hash` of ``info/exclude`` and of
    ``core.excludesFile``.
    """
    ident = b"Location %b, system Linux\0" % worktree
    out = [_varint(len(ident)), ident, bytes(72), struct.pack(">L", _DIR_FLAGS)]
    out += [exclude, excludes_file, b".gitignore\0"]
    blocks: list[bytes] = []
    stats: list[bytes] = []
    ignores: list[bytes] = []
    with_ignore: list[int] = []
    for number, folder in enumerate(_depth_first(root, Folder.shown_folders)):
        blocks.append(b"\0" + _varint(len(folder.shown_folders())) + folder.name + b"\0")
        stats.append(stat.encode(folder.ino))
        if folder.ignore is not None:
            with_ignore.append(number)
            ignores.append(folder.ignore)
    count = len(stats)
    out += [_varint(count), *blocks]
    out += [encode_ewah(range(count), count), encode_ewah((), 0), encode_ewah(with_ignore, count)]
    out += [*stats, *ignores, b"\0"]
    return extension(b"UNTR", b"".join(out))


def exclude_hash(content: bytes | None) -> Oid:
    """The hash by which git knows an exclude file that is not in the index; None: no such file.

    Git reads the content with a newline added, unless there is none.
    """
    if content is None:
        return _NO_OID
    return object_id("blob", content + b"\n" if content else b"")


def _depth_first(root: Folder, below: Callable[[Folder], list[Folder]]) -> Iterator[Folder]:
    stack = [root]
    while stack:
        folder = stack.pop()
        yield folder
        stack.extend(reversed(below(folder)))


def _varint(value: int) -> bytes:
    """git's varint.c, which is the encoding of a delta's base as well."""
    return encode_base_distance(value)


def encode_ewah(bits: Iterable[int], size: int) -> bytes:
    """The compressed bitmap of `size` bits in which `bits` are set.

    EWAH: each marker word tells a run of equal words, and how many literal words follow.
    """
    words: dict[int, int] = {}
    for bit in bits:
        words[bit // _WORD] = words.get(bit // _WORD, 0) | 1 << bit % _WORD
    out: list[int] = []
    marker = 0
    for fill, run, literals in _runs(words):
        marker = len(out)
        out.append(fill | run << 1 | len(literals) << 33)
        out.extend(literals)
    if not out:
        out.append(0)
    return struct.pack(f">LL{len(out)}QL", size if words else 0, len(out), *out, marker)


def _runs(words: Mapping[int, int]) -> Iterator[tuple[int, int, list[int]]]:
    """(bit of the run, length of the run in words, literal words after it)."""
    full = (1 << _WORD) - 1
    numbers = sorted(words)
    position = at = 0
    while at < len(numbers):
        fill, run = 0, numbers[at] - position
        if not run:
            while at < len(numbers) and numbers[at] == position and words[position] == full:
                fill, run, position, at = 1, run + 1, position + 1, at + 1
        else:
            position += run
        literals: list[int] = []
        while at < len(numbers) and numbers[at] == position and words[position] != full:
            literals.append(words[position])
            position, at = position + 1, at + 1
        yield fill, run, literals
