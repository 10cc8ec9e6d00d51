"""The object database of a repository: commits, trees and blobs that are here.

Reads packs (with the index of each), loose objects and alternates. Never touches the network, and
never hands out wrong bytes: content is checked against its oid at every read (SHA-1 of 6 KB takes
5 µs, the inflating 30). Where a copy turns out corrupt it is passed over, remembered for
`drain_corrupt`, and another copy is looked for: to the caller the object is as good as not here,
so that it is fetched again.

Reads do not map pack files: pages of a mapping count as memory of the process, `pread` costs 1 µs
and the page cache is the same. New packs (our own downloads, those of another mount that shares
the object directory, a `git fetch` of the user) are seen at the first miss after they came.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import filterfalse
from pathlib import Path

from artifactfs.errors import CorruptData
from artifactfs.git.apart import alternates_of, is_offered
from artifactfs.git.checkout.refused_names import Protection
from artifactfs.git.objects.format import (
    CommitInfo,
    TreeEntry,
    are_plain,
    is_absent,
    parse_commit,
    parse_tree,
    parse_whole_tree,
    tag_target,
)
from artifactfs.git.objects.loose import open_loose
from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.format import Content, Kind, Oid
from artifactfs.git.pack.index import AS_MANY, PackIndex
from artifactfs.git.pack.reader import PIECE, BaseCache, PackBytes, Scratch, write_bytes

__all__ = ["CommitInfo", "MissingObject", "ObjectDatabase", "Oid", "TreeEntry"]

BASE_CACHE = 4 << 20
"""Bytes of delta bases kept for the next read."""

IN_MEMORY = 8 << 20
"""Larger contents are put together in a mapped temporary file."""

MAX_IN_MEMORY = 256 << 20
"""Bytes of a tree, commit or tag: a folder of a million names has 40 MB. (A few MB of a pack
inflate to gigabytes, and a tree that was read takes three times its size.)"""

_STABLE_NS = 20_000_000
"""A directory that changed this recently may change again without a new mtime (kernel tick)."""

_MAX_ALTERNATE_DEPTH = 5

_KIND_BITS = 0o170000
_DIRECTORY = 0o040000

_MANY = 8
"""As many look-ups of loose objects cost more than a listing of the folders that they may be in."""
_LOOSE_FOLDER = re.compile(r"[0-9a-f]{2}")
EMPTY_TREE = bytes.fromhex("4b825dc642cb6eb9a060e54bf8d69288fbee4904")
"""Known to every git without being stored."""


class MissingObject(LookupError):
    """The object is not in the object database. `oid` says which."""

    def __init__(self, oid: Oid) -> None:
        super().__init__(f"object {oid.hex()} is not here")
        self.oid = oid


class _Pack:
    """A pack on disk. Its descriptor is closed with the last reference, so readers are safe."""

    __slots__ = ("_file", "bad", "data", "index", "path", "used")

    def __init__(self, path: Path, key: int, cache: BaseCache, scratch: Scratch) -> None:
        """Raises: CorruptData, OSError."""
        self.path = path
        self.index = PackIndex(path.with_suffix(".idx"))
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - lives as long as the pack
        fd = self._file.fileno()
        if os.fstat(fd).st_size < packformat.HEADER_BYTES + packformat.TRAILER_BYTES:
            raise CorruptData(f"{path} is cut")
        self.data = PackBytes(fd, find=self.index.offset, cache=cache, scratch=scratch, key=key)
        self.bad: set[Oid] = set()
        self.used = False

    def find(self, oid: Oid) -> int | None:
        offset = self.index.offset(oid)
        return None if offset is None or oid in self.bad else offset

    def is_whole(self) -> bool:
        """Whether its index is as long as when it was opened. In what was cut off a mapping shows
        zeros to the end of the page; whoever looks behind that page is ended (SIGBUS)."""
        try:
            return os.stat(self.path.with_suffix(".idx")).st_size == self.index.size
        except OSError:
            return False

    def lacking(self, oids: list[Oid]) -> list[Oid]:
        """Those of `oids` that are not in it, in their order."""
        if self.bad:
            return [oid for oid in oids if self.find(oid) is None]
        return self.index.lacking(oids)

    def among(self, oids: list[Oid]) -> list[Oid]:
        """It may have others of the same first bytes, too: what it has of these sorted oids."""
        first, last = oids[0][0], oids[-1][0]
        if self.bad or self.index.count_between(first, last) > AS_MANY * len(oids):
            return [oid for oid in oids if self.find(oid) is not None]
        return self.index.between(first, last)


class _Directory:
    """One ``objects`` directory: its packs by name, and its loose objects."""

    __slots__ = ("_scanned_ns", "packs", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packs: dict[tuple[str, int], _Pack] = {}
        self._scanned_ns = -1

    def pack_files(self) -> set[tuple[str, int]] | None:
        """(name, inode) of the packs that have an index; None where nothing changed since.

        With the inode, since a pack that was damaged is replaced by one of the same name.
        """
        directory = self.path / "pack"
        try:
            changed_ns = os.stat(directory).st_mtime_ns
            if changed_ns == self._scanned_ns:
                return None
            now_ns = time.time_ns()
            with os.scandir(directory) as entries:
                inodes = {entry.name: entry.inode() for entry in entries}
        except FileNotFoundError:
            return set()
        stable = now_ns - changed_ns > _STABLE_NS
        self._scanned_ns = changed_ns if stable else -1
        packs = (f"{name[:-4]}.pack" for name in inodes if name.endswith(".idx"))
        return {(name, inodes[name]) for name in packs if name in inodes}

    def forget(self, pack: _Pack) -> None:
        """Open it anew at the next look, whether or not the folder has changed."""
        for file in [file for file, known in self.packs.items() if known is pack]:
            del self.packs[file]
            self._scanned_ns = -1

    def loose_folders(self) -> set[int]:
        """The first bytes of the oids of loose objects that may be here."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return set()
        return {int(name, 16) for name in names if _LOOSE_FOLDER.fullmatch(name)}

    def lacking(self, oids: list[Oid], folders: set[int]) -> list[Oid]:
        """Those of `oids` of which it has no loose object; `folders` as `loose_folders`."""
        return [oid for oid in oids if oid[0] not in folders or not os.path.exists(self.loose(oid))]

    def loose(self, oid: Oid) -> str:
        name = oid.hex()
        return f"{self.path}/{name[:2]}/{name[2:]}"


class ObjectDatabase:
    """The objects of one gitdir. Synchronous; safe from any thread; never waits for the network."""

    def __init__(self, gitdir: Path) -> None:
        self._objects = _object_directory(gitdir)
        self._cache = BaseCache(BASE_CACHE)
        self._scratch = Scratch(None, IN_MEMORY)
        self._lock = threading.Lock()
        self._directories: list[_Directory] = []
        self._packs: list[_Pack] = []
        self._last: _Pack | None = None  # where the last object was: the next is often there too
        self._corrupt: set[Path] = set()
        self.on_corrupt: Callable[[Path], None] = _ignore
        """Told of each pack in which a corrupt object is met, and of each index that was cut. Any
        thread calls it."""
        self._next_key = 1
        self._protection = Protection.kept_in(gitdir)
        self._hollow: dict[Oid, bool] = {}
        self._has_empty_tree = False
        self.refresh()

    def tree(self, oid: Oid) -> list[TreeEntry]:
        """What git checks out of a tree, in its own order. Raises: MissingObject, CorruptData.

        Without names that are refused, and without directories that hold no file at any depth:
        git makes a directory for what is in it.
        """
        entries = parse_tree(self._require(oid, "tree"), self._protection)
        if any(self._is_hollow(entry) for entry in entries):
            return [entry for entry in entries if not self._is_hollow(entry)]
        return entries

    def whole_tree(self, oid: Oid) -> list[TreeEntry]:
        """All entries of a tree, as the index has them. Raises: MissingObject, CorruptData."""
        return parse_whole_tree(self._require(oid, "tree"))

    def is_shown(self, entry: TreeEntry) -> bool:
        """Whether `tree` has the entry, too."""
        return not (is_absent(entry, self._protection) or self._is_hollow(entry))

    def shows_all(self, entries: list[TreeEntry]) -> bool:
        """Whether `tree` has all of these, which are those of one tree: 0.1 us each."""
        if not are_plain(entries):
            return False
        if self._has_empty_tree:
            return not any(self._is_hollow(entry) for entry in entries)
        return all(entry.oid != EMPTY_TREE for entry in entries)

    def _is_hollow(self, entry: TreeEntry) -> bool:
        """A hollow tree ends in empty ones, so it is only looked into where there is one: servers
        send the empty tree, although every git knows it."""
        if entry.mode & _KIND_BITS != _DIRECTORY:
            return False
        return entry.oid == EMPTY_TREE or (self._has_empty_tree and self._holds_no_file(entry.oid))

    def _holds_no_file(self, tree: Oid) -> bool:
        known = self._hollow.get(tree)
        if known is None:
            try:
                entries = self.whole_tree(tree)
            except (MissingObject, CorruptData):
                return False
            known = all(self._is_hollow(entry) for entry in entries)
            self._hollow[tree] = known
        return known

    def commit(self, oid: Oid) -> CommitInfo:
        """A commit; annotated tags are followed. Raises: MissingObject, CorruptData."""
        for _ in range(10):
            found = self.read(oid)
            if found is None:
                self._let_go_of_cut()
                raise MissingObject(oid)
            kind, content = found
            if kind != "tag":
                break
            oid = tag_target(oid, content)
        if kind != "commit":
            raise CorruptData(f"{oid.hex()} is a {kind}, not a commit")
        return parse_commit(oid, content)

    def blob(self, oid: Oid) -> bytes | None:
        """The whole content of a blob, None where it is not here. Raises: CorruptData."""
        found = self.read(oid)
        if found is None:
            return None
        if found[0] != "blob":
            raise CorruptData(f"{oid.hex()} is a {found[0]}, not a blob")
        return found[1]

    def small_blob(self, oid: Oid, limit: int) -> bytes | int | None:
        """The content of a blob of less than `limit` bytes, the size of a larger one; None: not
        here. One look-up, where `header_size` and `blob` take two. Raises: CorruptData."""
        found = self._small(oid, limit)
        if found is None and self._rescan():
            found = self._small(oid, limit)
        if found is None or isinstance(found, int):
            return found
        if found[0] != "blob":
            raise CorruptData(f"{oid.hex()} is a {found[0]}, not a blob")
        return bytes(found[1])

    def read(self, oid: Oid) -> tuple[Kind, bytes] | None:
        """Kind and content of any object, checked against `oid`; None where it is not here.

        Raises: CorruptData for a tree, commit or tag of more than `MAX_IN_MEMORY`.
        """
        found = self._read(oid)
        if found is None and self._rescan():
            found = self._read(oid)
        if found is None:
            return None
        kind, content = found
        if kind != "blob" and len(content) > MAX_IN_MEMORY:
            size = len(content)
            raise CorruptData(f"{oid.hex()} is a {kind} of {size} bytes: too large to be read")
        return kind, bytes(content)

    def export_blob(self, oid: Oid, fd: int) -> int | None:
        """Write a blob into the empty regular file `fd` without holding it in memory.

        Returns its size, or None where it is not here; the file is then empty. Takes as long as
        writing does: for a large blob call it in a thread. Raises: OSError (no space).
        """
        size = self._export(oid, fd)
        if size is None and self._rescan():
            size = self._export(oid, fd)
        return size

    def header_size(self, oid: Oid) -> int | None:
        """The size of an object from its header, inflating a few bytes at most; None: not here."""
        size = self._header_size(oid)
        if size is None and self._rescan():
            size = self._header_size(oid)
        return size

    def contains(self, oid: Oid, *, look_again: bool = True) -> bool:
        """Whether the object is here. Does not read it.

        Without `look_again` new packs are not looked for: 3 µs instead of 30 where it is absent.
        """
        return self._contains(oid) or (look_again and self._rescan() and self._contains(oid))

    def has_prefix(self, digits: str) -> bool:
        """Whether the oid of an object that is here begins with these hex digits (two to 40, lower
        case). Looks for new packs.
        """
        self._rescan()
        if any(pack.index.has_prefix(digits) for pack in self._packs):
            return True
        folder, rest = digits[:2], digits[2:]
        for directory in self._directories:
            with suppress(OSError), os.scandir(directory.path / folder) as entries:
                if any(entry.name.startswith(rest) for entry in entries):
                    return True
        return False

    def missing(self, oids: Iterable[Oid]) -> list[Oid]:
        """Those of `oids` that are not here, in their order.

        Looks for new packs once for all of them: 2 µs an oid, where `contains` takes 30.
        """
        absent = self._absent(oids)
        if absent and self._rescan():
            absent = self._absent(absent)
        return absent

    def missing_sorted(self, oids: list[Oid]) -> list[Oid]:
        """As `missing`, for thousands of sorted oids: 0.3 us each."""
        if not oids:
            return []
        self._rescan()
        here: set[Oid] = set()
        for pack in self._packs:
            here.update(pack.among(oids))
        absent = list(filterfalse(here.__contains__, oids))
        for directory in self._directories:
            if absent:
                absent = directory.lacking(absent, directory.loose_folders())
        return absent

    def refresh(self) -> None:
        """Look for new packs and alternates, and let go of packs that were deleted.

        Reads find new packs by themselves; this frees the disk space of deleted ones.
        """
        self._rescan()

    def drain_used(self) -> list[Path]:
        """The packs that were read from since the last call: for least-recently-used eviction."""
        used = [pack for pack in self._packs if pack.used]
        for pack in used:
            pack.used = False
        return [pack.path for pack in used]

    def drain_corrupt(self) -> list[Path]:
        """The packs in which a corrupt object was met since the last call."""
        corrupt, self._corrupt = self._corrupt, set()
        return sorted(corrupt)

    # Packs first, then loose objects: nearly everything is in a pack.

    def _found(self, oid: Oid) -> Iterator[tuple[_Pack, int]]:
        """The packs that have `oid`, and where."""
        last = self._last
        if last is not None:
            offset = last.find(oid)
            if offset is not None:
                yield last, offset
        for pack in self._packs:
            offset = pack.find(oid)
            if offset is not None and pack is not last:
                self._last = pack
                yield pack, offset

    def _read(self, oid: Oid) -> tuple[Kind, Content] | None:
        if oid == EMPTY_TREE:
            return "tree", b""
        for pack, offset in self._found(oid):
            try:
                kind, content = pack.data.read(offset)
            except (CorruptData, OSError, OverflowError):
                self._distrust(pack, oid)
                continue
            if packformat.object_id(kind, content) == oid:
                pack.used = True
                return kind, content
            self._distrust(pack, oid)
        return self._read_loose(oid)

    def _small(self, oid: Oid, limit: int) -> tuple[Kind, Content] | int | None:
        for pack, offset in self._found(oid):
            try:
                size = pack.data.size(offset)
                if size >= limit:
                    return size
                kind, content = pack.data.read(offset)
            except (CorruptData, OSError, OverflowError):
                self._distrust(pack, oid)
                continue
            if packformat.object_id(kind, content) == oid:
                pack.used = True
                return kind, content
            self._distrust(pack, oid)
        size_there = self._loose_size(oid)
        if size_there is not None and size_there >= limit:
            return size_there
        return self._read_loose(oid)

    def _export(self, oid: Oid, fd: int) -> int | None:
        for pack, offset in self._found(oid):
            try:
                entry = pack.data.pieces(offset)
                if entry is None:  # a delta: needs its base, so there is no streaming
                    kind, content = pack.data.read(offset)
                    entry = kind, len(content), _slices(content)
            except (CorruptData, OSError, OverflowError):
                self._distrust(pack, oid)
                continue
            if _write_verified(entry, oid, fd):
                pack.used = True
                return entry[1]
            self._distrust(pack, oid)
        found = self._read_loose(oid)
        if found is None:
            return None
        entry = found[0], len(found[1]), _slices(found[1])
        return entry[1] if _write_verified(entry, oid, fd) else None

    def _header_size(self, oid: Oid) -> int | None:
        for pack, offset in self._found(oid):
            try:
                return pack.data.size(offset)
            except (CorruptData, OSError, OverflowError):
                self._distrust(pack, oid)
        return self._loose_size(oid)

    def _loose_size(self, oid: Oid) -> int | None:
        for directory in self._directories:
            opened = open_loose(directory.loose(oid))
            if opened is not None:
                return opened[1]
        return None

    def _contains(self, oid: Oid) -> bool:
        if next(self._found(oid), None) is not None:
            return True
        return any(os.path.exists(directory.loose(oid)) for directory in self._directories)

    def _absent(self, oids: Iterable[Oid]) -> list[Oid]:
        """Those of many objects that are not here, in their order."""
        absent = list(oids)
        for pack in self._packs:
            if absent:
                absent = pack.lacking(absent)
        if len(absent) < _MANY:
            return [oid for oid in absent if not self._contains(oid)]
        for directory in self._directories:
            absent = directory.lacking(absent, directory.loose_folders())
        return absent

    def _read_loose(self, oid: Oid) -> tuple[Kind, Content] | None:
        for directory in self._directories:
            opened = open_loose(directory.loose(oid))
            if opened is None:
                continue
            kind, size, pieces = opened
            try:
                content = self._scratch.collect(pieces, size)
            except CorruptData:
                continue
            if packformat.object_id(kind, content) == oid:
                return kind, content
        return None

    def _require(self, oid: Oid, wanted: Kind) -> bytes:
        found = self.read(oid)
        if found is None:
            self._let_go_of_cut()
            raise MissingObject(oid)
        if found[0] != wanted:
            raise CorruptData(f"{oid.hex()} is a {found[0]}, not a {wanted}")
        return found[1]

    def _distrust(self, pack: _Pack, oid: Oid) -> None:
        pack.bad.add(oid)
        self._corrupt.add(pack.path)
        self.on_corrupt(pack.path)

    def _let_go_of_cut(self) -> None:
        """Something that has to be here is not found: perhaps since an index was cut. Its pack is
        opened anew when the folder is looked at."""
        for pack in [pack for pack in self._packs if not pack.is_whole()]:
            with self._lock:
                for directory in self._directories:
                    directory.forget(pack)
                self._packs = [known for known in self._packs if known is not pack]
                self._last = None
            self._corrupt.add(pack.path)
            self.on_corrupt(pack.path.with_suffix(".idx"))

    # What is on disk

    def _rescan(self) -> bool:
        """Bring the list of packs up to date; True where objects may have come."""
        with self._lock:
            gained = self._scan_directories()
            lost = False
            for directory in self._directories:
                files = directory.pack_files()
                if files is None:
                    continue
                for file in directory.packs.keys() - files:
                    del directory.packs[file]
                    lost = True
                for file in files - directory.packs.keys():
                    gained |= self._open_pack(directory, file)
            if gained or lost:
                self._packs = [p for d in self._directories for p in d.packs.values()]
                self._last = None
            if gained and not self._has_empty_tree:
                self._has_empty_tree = self._contains(EMPTY_TREE)
            return gained

    def _open_pack(self, directory: _Directory, file: tuple[str, int]) -> bool:
        path = directory.path / "pack" / file[0]
        try:
            pack = _Pack(path, self._next_key, self._cache, self._scratch)
        except FileNotFoundError:  # deleted meanwhile
            return False
        except (CorruptData, OSError):
            self._corrupt.add(path)
            return False
        self._next_key += 1
        directory.packs[file] = pack
        return True

    def _scan_directories(self) -> bool:
        """Follow `info/alternates`; True where they changed."""
        paths = list(_with_alternates(self._objects, _MAX_ALTERNATE_DEPTH))
        if paths == [directory.path for directory in self._directories]:
            return False
        known = {directory.path: directory for directory in self._directories}
        self._directories = [known.get(path) or _Directory(path) for path in paths]
        return True


def _ignore(_: Path) -> None:
    """Nobody wants to know."""


def _object_directory(gitdir: Path) -> Path:
    """The object directory of `gitdir`, which may be the gitdir of a linked worktree."""
    try:
        common = (gitdir / "commondir").read_text().strip()
    except OSError:
        return gitdir / "objects"
    return Path(os.path.normpath(gitdir / common)) / "objects"


def _with_alternates(objects: Path, depth: int) -> Iterator[Path]:
    """`objects` and the object directories its ``info/alternates`` lead to, each once.

    But what a mount offers: to ask the mount that this process serves would wait for ever.
    """
    seen: dict[Path, None] = {objects: None}
    queue = [(objects, depth)]
    while queue:
        directory, left = queue.pop(0)
        for path in alternates_of(directory) if left else ():
            if path not in seen and not is_offered(path):
                seen[path] = None
                queue.append((path, left - 1))
    yield from seen


def _slices(content: Content) -> Iterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


def _write_verified(entry: tuple[Kind, int, Iterator[bytes]], oid: Oid, fd: int) -> bool:
    """Write an object's pieces to `fd`; empties the file again where they are not `oid`."""
    kind, size, pieces = entry
    digest = hashlib.sha1(b"%s %d\0" % (kind.encode(), size), usedforsecurity=False)
    try:
        for piece in pieces:
            digest.update(piece)
            write_bytes(fd, piece)
    except CorruptData:
        pass
    else:
        if digest.digest() == oid:
            return True
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    return False
