"""Reading commits, trees and files of a repository in the server's own process, by libgit2.

Everything here is synchronous and runs in a worker thread. Names from a client are looked up in
ref tables and trees; none becomes a path on disk.
"""

from __future__ import annotations

import re
import time
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pygit2
from pygit2.enums import FileMode, ObjectType

OID = re.compile(r"[0-9a-f]{40}")
EntryType = Literal["blob", "tree", "exec", "symlink", "gitlink"]

_KINDS: dict[int, EntryType] = {
    FileMode.BLOB: "blob",
    FileMode.BLOB_EXECUTABLE: "exec",
    FileMode.TREE: "tree",
    FileMode.LINK: "symlink",
    FileMode.COMMIT: "gitlink",
}
LARGEST_OBJECT = 64 * 1024 * 1024
"""Bytes of a tree with a million entries."""
_MOST_SIZES = 1_000
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"wOF2", "font/woff2"),
)

pygit2.option(pygit2.enums.Option.SET_OWNER_VALIDATION, 0)


class NoSuchContent(Exception):
    """The ref, object or path is not in the repository."""


class TooLarge(Exception):
    """The commit or tree is larger than any real one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tree. `mode` as in the tree object, octal."""

    name: str
    mode: str
    hash: str
    type: EntryType


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref and the hex oid of the object that it points to."""

    name: str
    hash: str


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob. `data` is None for one that is larger than it may be held in memory."""

    hash: str
    size: int
    data: bytes | None


class Content:
    """One open repository. Use it in one thread at a time."""

    def __init__(self, gitdir: Path) -> None:
        self._repo = pygit2.Repository(str(gitdir))

    def commit_id(self, ref: str) -> pygit2.Oid:
        """The commit that a branch, tag, full ref name, HEAD or oid stands for.

        Raises: NoSuchContent.
        """
        if OID.fullmatch(ref):
            return self._peel(pygit2.Oid(hex=ref))
        names = [ref] if ref == "HEAD" or ref.startswith("refs/") else []
        for name in (*names, f"refs/heads/{ref}", f"refs/tags/{ref}"):
            try:
                target = self._repo.lookup_reference(name).resolve().target
            except (KeyError, ValueError, pygit2.GitError):
                continue
            return self._peel(pygit2.Oid(hex=str(target)))
        raise NoSuchContent(ref)

    def _peel(self, oid: pygit2.Oid) -> pygit2.Oid:
        try:
            return self._load(oid).peel(pygit2.Commit).id
        except (KeyError, ValueError, pygit2.GitError):
            raise NoSuchContent(str(oid)) from None

    def _load(self, oid: pygit2.Oid) -> pygit2.Object:
        """Read a commit, tag or tree, which is held in memory whole.

        Raises: KeyError; TooLarge: a delta of a few bytes can stand for gigabytes.
        """
        _, size = self._repo.odb.read_header(oid)
        if size > LARGEST_OBJECT:
            raise TooLarge(str(oid))
        return self._repo[oid]

    def commit(self, hexadecimal: str) -> pygit2.Commit:
        """Raises: NoSuchContent."""
        found = self._object(hexadecimal, ObjectType.COMMIT)
        assert isinstance(found, pygit2.Commit)
        return found

    def log(self, ref: str, limit: int, offset: int) -> list[pygit2.Commit]:
        """First parents, newest first. Raises: NoSuchContent."""
        commits: list[pygit2.Commit] = []
        for number, commit in enumerate(self._first_parents(self.commit_id(ref))):
            if number >= offset + limit:
                break
            if number >= offset:
                commits.append(commit)
        return commits

    def _first_parents(self, oid: pygit2.Oid) -> Iterator[pygit2.Commit]:
        while True:
            try:
                commit = self._load(oid)
            except KeyError:
                return  # the edge of a shallow history
            assert isinstance(commit, pygit2.Commit)
            yield commit
            if not commit.parent_ids:
                return
            oid = commit.parent_ids[0]

    def tree(self, hexadecimal: str) -> list[Entry]:
        """The entries of a tree (a commit stands for its tree). Raises: NoSuchContent."""
        found = self._object(hexadecimal, ObjectType.TREE, ObjectType.COMMIT)
        if isinstance(found, pygit2.Commit):
            found = self._object(str(found.tree_id), ObjectType.TREE)
        assert isinstance(found, pygit2.Tree)
        return [
            Entry(
                _decode(entry.raw_name),
                f"{int(entry.filemode):06o}",
                str(entry.id),
                _KINDS.get(int(entry.filemode), "blob"),
            )
            for entry in found
        ]

    def sizes(self, entries: Sequence[Entry]) -> dict[str, int]:
        """Bytes of the files among `entries`, by oid; of the first thousand."""
        found = {}
        for entry in entries[:_MOST_SIZES]:
            if entry.type in ("blob", "exec", "symlink"):
                with suppress(KeyError, ValueError, pygit2.GitError):
                    found[entry.hash] = self._repo.odb.read_header(pygit2.Oid(hex=entry.hash))[1]
        return found

    def last_changes(self, ref: str, path: str, most_s: float) -> dict[str, pygit2.Commit]:
        """The newest commits that changed the entries of a folder, by their names.

        Along first parents, as `log` goes. It looks for `most_s` seconds; entries whose commit is
        further back are left out. Raises: NoSuchContent.
        """
        end = time.monotonic() + most_s
        found: dict[str, pygit2.Commit] = {}
        newer: pygit2.Commit | None = None
        folder: pygit2.Oid | None = None
        open_names: dict[bytes, pygit2.Oid] = {}
        for commit in self._first_parents(self.commit_id(ref)):
            here = self._folder(commit, path)
            if newer is None:
                open_names = self._names(here)
            elif here != folder:
                there = self._names(here)
                for name in [n for n, oid in open_names.items() if there.get(n) != oid]:
                    found[_decode(name)] = newer
                    del open_names[name]
            newer, folder = commit, here
            if not open_names or time.monotonic() > end:
                return found
        if newer is not None and not newer.parent_ids:  # not the edge of a shallow history
            found |= {_decode(name): newer for name in open_names}
        return found

    def _folder(self, commit: pygit2.Commit, path: str) -> pygit2.Oid | None:
        oid = commit.tree_id
        for name in path.split("/") if path else ():
            try:
                tree = self._load(oid)
                assert isinstance(tree, pygit2.Tree)
                entry = tree[name]
            except (KeyError, ValueError, pygit2.GitError):
                return None
            if int(entry.filemode) != FileMode.TREE:
                return None
            oid = entry.id
        return oid

    def _names(self, tree_id: pygit2.Oid | None) -> dict[bytes, pygit2.Oid]:
        if tree_id is None:
            return {}
        try:
            tree = self._load(tree_id)
        except (KeyError, ValueError, pygit2.GitError):
            return {}
        assert isinstance(tree, pygit2.Tree)
        return {entry.raw_name or b"": entry.id for entry in tree}

    def blob(self, hexadecimal: str, held: int) -> Blob:
        """A blob, with its data if that is at most `held` bytes. Raises: NoSuchContent."""
        if not OID.fullmatch(hexadecimal):
            raise NoSuchContent(hexadecimal)
        oid = pygit2.Oid(hex=hexadecimal)
        try:
            kind, size = self._repo.odb.read_header(oid)
        except (KeyError, pygit2.GitError):
            raise NoSuchContent(hexadecimal) from None
        if kind != ObjectType.BLOB:
            raise NoSuchContent(hexadecimal)
        data = self._repo.odb.read(oid)[1] if size <= held else None
        return Blob(hexadecimal, size, data)

    def refs(self) -> list[Ref]:
        """All refs by name, with what they point to."""
        names = sorted(self._repo.raw_listall_references())
        found = []
        for raw in names:
            name = raw.decode("utf-8", "surrogateescape")
            try:
                target = self._repo.lookup_reference(name).resolve().target
            except (KeyError, ValueError, pygit2.GitError, UnicodeError):
                continue
            found.append(Ref(raw.decode("utf-8", "replace"), str(target)))
        return found

    def ref_target(self, name: str) -> str | None:
        """The hex oid that the ref of that full name holds; None if there is none."""
        try:
            target = self._repo.lookup_reference(name).target
        except (KeyError, ValueError, pygit2.GitError):
            return None
        return str(target) if isinstance(target, pygit2.Oid) else None

    def descends(self, oid: str, ancestor: str) -> bool:
        """True if a commit has another one in its history."""
        try:
            return bool(self._repo.descendant_of(pygit2.Oid(hex=oid), pygit2.Oid(hex=ancestor)))
        except (KeyError, ValueError, pygit2.GitError):
            return False

    def has(self, oid: pygit2.Oid) -> bool:
        """True if the object is there."""
        return bool(self._repo.odb.exists(oid))

    def entry_at(self, ref: str, path: str) -> Entry:
        """What is at a path of a ref. Raises: NoSuchContent."""
        entry = Entry("", "040000", str(self.commit_id(ref)), "tree")
        for name in path.split("/"):
            if entry.type != "tree":
                raise NoSuchContent(path)
            entry = next((e for e in self.tree(entry.hash) if e.name == name), _NONE)
            if entry is _NONE:
                raise NoSuchContent(path)
        return entry

    def file(self, ref: str, path: str, held: int) -> Blob:
        """The content of a file (of a symlink: its target). Raises: NoSuchContent."""
        return self.blob(self.entry_at(ref, path).hash, held)

    def file_below(self, ref_and_path: str, held: int) -> Blob:
        """A file named ``REF/PATH``, where the ref may have slashes itself.

        Raises: NoSuchContent.
        """
        parts = ref_and_path.split("/")
        for cut in range(1, len(parts)):
            try:
                return self.file("/".join(parts[:cut]), "/".join(parts[cut:]), held)
            except NoSuchContent:
                continue
        raise NoSuchContent(ref_and_path)

    def _object(self, hexadecimal: str, *kinds: ObjectType) -> pygit2.Object:
        if not OID.fullmatch(hexadecimal):
            raise NoSuchContent(hexadecimal)
        try:
            found = self._load(pygit2.Oid(hex=hexadecimal))
        except (KeyError, ValueError, pygit2.GitError):
            raise NoSuchContent(hexadecimal) from None
        if found.type not in kinds:
            raise NoSuchContent(hexadecimal)
        return found


_NONE = Entry("", "", "", "blob")


def _decode(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace")


def sniff(data: bytes) -> str:
    """A content type from the first bytes; text is always plain, so a browser never runs it."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if b"\0" in data[:8_000]:
        return "application/octet-stream"
    try:
        # A beginning may end within a character.
        getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain; charset=utf-8"
