"""The primed index: written by us right after the clone, so that git finds everything in order.

Every entry has exactly the stat data that the mount reports, so the first `git status` reads no
file and sends no request; with the extensions (see `extensions`) it stats nothing either.
An entry whose size is not known yet has size 0, which means "unknown" to git; it is trusted
through FSMN, and read by git only once it was changed.

Is written in a process of its own (`primer`), because 100,000 entries take a second or two of the
interpreter.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from artifactfs.errors import AlreadyExists, CorruptData, StateError
from artifactfs.git.apart import gitdir_environment
from artifactfs.git.checkout.conversion import CONFIG_KEYS, ConversionSettings, TreeConversions
from artifactfs.git.checkout.smudge import to_worktree
from artifactfs.git.index.extensions import (
    DirectoryStat,
    Folder,
    encode_cache_tree,
    encode_fsmonitor,
    encode_untracked_cache,
    exclude_hash,
)
from artifactfs.git.index.file import StatData, clean_entry_encoder, finish_index
from artifactfs.git.objects.database import ObjectDatabase, Oid, TreeEntry
from artifactfs.inode_numbers import ROOT_INO, numbers_in
from artifactfs.paths import leads_into, real_path

_TREE = 0o040000
_GITLINK = 0o160000
_SYMLINK = 0o120000
_REGULAR = 0o100000
_KIND = 0o170000
_SIZES_A_QUERY = 500
_SIZES_AT_ONCE = 1_000_000
"""Their oids and sizes take 150 MB."""
_READ_ALL = 3
"""With so many rows for each size that is wanted, reading all is as fast as looking each up."""
UNKNOWN = -1
_SKIP_WORKTREE = 0x4000
"""Git takes such an entry for unchanged, though there is no file: as in a sparse checkout."""
_NO_NAMES = (b"", b".", b"..")
"""What no path has, also not in an index."""


class IndexExists(AlreadyExists):
    """Git has written an index meanwhile; ours is not needed."""


class AttributesMissing(StateError):
    """The .gitattributes files `oids` are not here, so it is not known which sizes are those of
    the blobs."""

    def __init__(self, oids: Sequence[Oid]) -> None:
        super().__init__(f"{len(oids)} attribute files are not here")
        self.oids = oids


class IndexLocked(StateError):
    """Git (or a crashed git) holds ``index.lock``."""


@dataclass(frozen=True, slots=True)
class PrimedIndex:
    """What was written: how many entries, and how many of them without a known size, or file."""

    entries: int
    unknown_sizes: int
    absent: int = 0
    """Files whose names no working tree can have."""


@dataclass(slots=True)
class Listing:
    """A whole tree, in the order of the index."""

    root: Folder
    files: list[tuple[bytes, int, Oid, int]] = field(default_factory=list)
    """(path, mode as in the index, oid, inode number); gitlinks among them."""
    ignore_files: list[tuple[Folder, bytes, Oid]] = field(default_factory=list)
    """(directory, path of the directory with a slash at its end, oid of its .gitignore)."""
    attribute_files: dict[bytes, Oid] = field(default_factory=dict)
    """Path of a directory (no slash at its end): oid of its .gitattributes."""
    absent: set[bytes] = field(default_factory=set)
    """Files that the working tree cannot have: their names are refused, or too long."""


def list_tree(odb: ObjectDatabase, tree: Oid, secret: bytes) -> Listing:
    """Walk the whole tree. Raises: MissingObject, CorruptData."""
    listing = Listing(Folder(b"", tree, ROOT_INO))
    stack = [_Walked.of(odb, listing.root, b"", secret)]
    files = listing.files
    modes: dict[int, int] = {}
    while stack:
        folder, prefix, entries, number, all_shown = stack[-1]
        for entry in entries:
            name, mode, oid = entry
            shown = all_shown or (folder.shown and odb.is_shown(entry))
            if not shown and (name in _NO_NAMES or b"/" in name):
                continue
            ino = number(name)
            if mode & _KIND == _TREE:
                child = Folder(name, oid, ino, entries=-len(files), shown=shown)
                folder.folders.append(child)
                stack.append(_Walked.of(odb, child, prefix + name + b"/", secret))
                break
            if mode not in modes:
                modes[mode] = index_mode(mode)
            files.append((prefix + name, modes[mode], oid, ino))
            if not shown:
                listing.absent.add(prefix + name)
            elif name == b".gitignore":
                listing.ignore_files.append((folder, prefix, oid))
            elif name == b".gitattributes" and mode & _KIND == _REGULAR:
                listing.attribute_files[prefix[:-1]] = oid
        else:
            folder.entries += len(files)
            stack.pop()
    return listing


class _Walked(NamedTuple):
    """A directory in the middle of the walk."""

    folder: Folder
    prefix: bytes
    entries: Iterator[TreeEntry]
    number: Callable[[bytes], int]
    all_shown: bool
    """Whether the working tree has every entry, which is found out for all at once."""

    @classmethod
    def of(cls, odb: ObjectDatabase, folder: Folder, prefix: bytes, secret: bytes) -> _Walked:
        """Raises: MissingObject, CorruptData."""
        entries = odb.whole_tree(folder.oid)
        all_shown = folder.shown and odb.shows_all(entries)
        return cls(folder, prefix, iter(entries), numbers_in(secret, folder.ino), all_shown)


def index_mode(mode: int) -> int:
    """The mode that the index holds for a tree entry's mode."""
    kind = mode & _KIND
    if kind in (_SYMLINK, _GITLINK):
        return kind
    return 0o100755 if mode & 0o100 else 0o100644


def read_sizes(path: Path | None, oids: Sequence[Oid]) -> dict[Oid, int]:
    """The sizes that ``sizes.db`` knows. A database that is not there knows none."""
    sizes: dict[Oid, int] = {}
    if path is None or not path.exists():
        return sizes
    wanted = set(oids)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            (rows,) = database.execute("SELECT count(*) FROM sizes").fetchone()
            if rows < _READ_ALL * len(wanted):
                found = database.execute("SELECT oid, size, crc FROM sizes")
                sound = (row for row in found if row[0] in wanted and _is_sound(*row))
                return {oid: size for oid, size, _ in sound}
            ordered = sorted(wanted)
            for start in range(0, len(ordered), _SIZES_A_QUERY):
                some = ordered[start : start + _SIZES_A_QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT oid, size, crc FROM sizes WHERE oid IN ({marks})"
                rows = database.execute(query, some)
                sizes.update((oid, size) for oid, size, crc in rows if _is_sound(oid, size, crc))
    except sqlite3.Error as error:
        raise StateError(f"cannot read {path}: {error}") from None
    return sizes


def _is_sound(oid: Oid, size: int, crc: int | None) -> bool:
    """As `hydration/local/sizes.py` writes it."""
    return crc == zlib.crc32(b"%d" % size, zlib.crc32(oid))


def _encode(
    listing: Listing,
    sizes: Iterable[int],
    stat: StatData,
    *,
    conversions: TreeConversions | None,
) -> bytearray:
    """The index entries of a tree, as they stand in the file. `sizes` are those of the blobs of
    ``listing.files``, or `UNKNOWN`; what `conversions` converts has another one, so it gets none.
    `stat` has what is the same for all."""
    encode = clean_entry_encoder(stat)
    absent = listing.absent
    out = bytearray()
    for (path, mode, oid, ino), size in zip(listing.files, sizes, strict=True):
        if mode == _GITLINK or size == UNKNOWN:
            size = 0
        elif conversions is not None and mode & _KIND == _REGULAR:
            size = size if conversions.shows_blob(path) else 0
        out += encode(path, mode, oid, ino, size, _SKIP_WORKTREE if path in absent else 0)
    return out


def sizes_of(listing: Listing, database: Path | None, odb: ObjectDatabase) -> array[int]:
    """The size of each of ``listing.files``, or `UNKNOWN`. Raises: StateError."""
    sizes = array("q", [UNKNOWN]) * len(listing.files)
    for start in range(0, len(sizes), _SIZES_AT_ONCE):
        some = listing.files[start : start + _SIZES_AT_ONCE]
        oids = [oid for _, mode, oid, _ in some if mode != _GITLINK]
        known = read_sizes(database, oids)
        unknown = [oid for oid in oids if oid not in known]
        absent = set(odb.missing(unknown))  # once for all: one that fails looks for new packs
        for oid in unknown:
            if oid not in absent and (size := odb.header_size(oid)) is not None:
                known[oid] = size
        for at, (_, _, oid, _) in enumerate(some, start):
            sizes[at] = known.get(oid, UNKNOWN)
    return sizes


class Priming:
    """The index of a mount of `tree`, of which nothing has changed since `token`: listed first,
    which needs trees alone, and written when sizes and attribute files are here.

    `worktree` is the mount point, `sizes` the path of ``sizes.db``; `uid`, `gid` and `time_ns`
    are what the mount reports of every clean file; `conversion` is the file with the mount's
    `ConversionSettings`, without which those of now are taken. `ino_secret` is the key of the
    mount's inode numbers. `force`: also where there is an index.
    """

    def __init__(
        self,
        gitdir: Path,
        tree: Oid,
        *,
        worktree: Path,
        sizes: Path | None,
        uid: int,
        gid: int,
        time_ns: int,
        token: str,
        conversion: Path | None = None,
        force: bool = False,
        ino_secret: bytes = b"",
    ) -> None:
        self._gitdir = gitdir
        self._worktree = worktree
        self._sizes = sizes
        self._uid, self._gid, self._time_ns = uid, gid, time_ns
        self._token = token
        self._conversion = conversion
        self._force = force
        self._tree = tree
        self._ino_secret = ino_secret
        self._odb = ObjectDatabase(gitdir)
        self._listed: Listing | None = None

    def listing(self) -> Listing:
        """The whole tree, read once. Raises: IndexExists, MissingObject, CorruptData."""
        if not self._force and (self._gitdir / "index").exists():
            raise IndexExists(f"{self._gitdir / 'index'} exists already")
        if self._listed is None:
            self._listed = list_tree(self._odb, self._tree, self._ino_secret)
        return self._listed

    def write(self, *, need_attributes: bool = False) -> PrimedIndex:
        """Write ``index``. Files below a .gitattributes that is not here get no size, or with
        `need_attributes` it raises AttributesMissing.

        ``index.lock`` is taken for the few ms of writing only: a git command in between is not
        refused, and wins if it writes an index.
        Raises: IndexExists, IndexLocked, MissingObject, CorruptData, StateError, OSError.
        """
        gitdir, odb, listing = self._gitdir, self._odb, self.listing()
        missing = odb.missing(listing.attribute_files.values())
        if missing and need_attributes:
            raise AttributesMissing(missing)
        known = sizes_of(listing, self._sizes, odb)
        settings = read_settings(gitdir, str(self._worktree))
        kept = _settings_of(self._conversion) or settings.conversion
        conversions = read_conversions(listing, odb, kept)
        of_all = StatData(self._time_ns, self._time_ns, 0, self._uid, self._gid, 0)
        encoded = _encode(listing, known, of_all, conversions=conversions)
        fill_ignore_hashes(listing, odb, conversions)
        count = len(listing.files)
        untrusted = [n for n, (_, mode, _, _) in enumerate(listing.files) if mode == _GITLINK]
        extensions = (
            encode_cache_tree(listing.root),
            encode_untracked_cache(
                listing.root,
                worktree=os.fsencode(real_path(str(self._worktree))),
                stat=DirectoryStat(self._time_ns, self._uid, self._gid),
                exclude=exclude_hash(_read(gitdir / "info" / "exclude")),
                excludes_file=exclude_hash(_read(settings.excludes_file)),
            ),
            encode_fsmonitor(self._token, untrusted, count),
        )
        content = finish_index(3 if listing.absent else 2, count, [encoded, *extensions])
        with locked_index(gitdir, force=self._force) as lock:
            lock.commit(content)
        without = known.count(UNKNOWN) - len(untrusted)
        return PrimedIndex(count, without, len(listing.absent))


class LockedIndex:
    """``index.lock``, held; `commit` puts a new index in place."""

    def __init__(self, gitdir: Path, file: Path | None = None) -> None:
        """`file` becomes the lock, and loses its own name: so its inode is known before.

        Raises: IndexLocked, OSError.
        """
        self._gitdir = gitdir
        self._path = gitdir / "index.lock"
        try:
            if file is None:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            else:
                os.link(file, self._path)
                self._fd = os.open(file, os.O_WRONLY)
        except FileExistsError:
            raise IndexLocked(
                f"{self._path} exists",
                hint="another git process runs there; if none does, delete the file",
            ) from None
        finally:
            if file is not None:
                file.unlink()
        self._held = True

    def commit(self, content: bytes | bytearray) -> None:
        """Replace the index. Raises: OSError."""
        with open(self._fd, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(self._fd)
        os.rename(self._path, self._gitdir / "index")
        self._held = False

    def __enter__(self) -> LockedIndex:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if self._held:
            with suppress(FileNotFoundError):
                self._path.unlink()


def locked_index(gitdir: Path, *, force: bool) -> LockedIndex:
    """Take ``index.lock``. Raises: IndexLocked; IndexExists, where there is one, unless `force`."""
    lock = LockedIndex(gitdir)
    if not force and (gitdir / "index").exists():
        with lock:
            raise IndexExists(f"{gitdir / 'index'} exists already")
    return lock


# What git compares the untracked cache with.


@dataclass(frozen=True, slots=True)
class GitSettings:
    """The settings that bear on ignore files, and those on conversions."""

    excludes_file: Path | None
    conversion: ConversionSettings


def read_settings(gitdir: Path, mount: str | None = None) -> GitSettings:
    """Ask git, since settings come from many files. Files in `mount` are not looked at."""
    command = ["git", "--git-dir", str(gitdir), "config", "-z", "--get-regexp"]
    command.append(rf"{CONFIG_KEYS}|^core\.excludesfile$")
    environment = gitdir_environment(gitdir)
    printed = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        env=environment,
        check=False,
    ).stdout
    found = dict(
        item.partition("\n")[::2] for item in os.fsdecode(printed).split("\0") if "\n" in item
    )
    excludes = found.get("core.excludesfile")
    if excludes is None:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        excludes = os.path.join(home, "git", "ignore")
    excludes = os.path.expanduser(excludes)
    conversion = ConversionSettings.read(printed, gitdir, mount)
    hidden = mount is not None and leads_into(excludes, mount)
    return GitSettings(None if hidden else Path(excludes), conversion)


def _settings_of(path: Path | None) -> ConversionSettings | None:
    content = _read(path)
    if content is None:
        return None
    return ConversionSettings.from_json(content.decode(errors="replace"))


def read_conversions(
    listing: Listing, odb: ObjectDatabase, settings: ConversionSettings
) -> TreeConversions | None:
    """What git converts when it checks the tree out; None: nothing at all."""
    contents: dict[bytes, bytes | None] = {}
    for directory, oid in listing.attribute_files.items():
        contents[directory] = None
        with suppress(CorruptData):
            contents[directory] = odb.blob(oid)
    if not contents and settings == ConversionSettings(
        filters=settings.filters, cleans=settings.cleans
    ):
        return None
    return TreeConversions(settings, contents)


def fill_ignore_hashes(
    listing: Listing, odb: ObjectDatabase, conversions: TreeConversions | None
) -> None:
    """Set `Folder.ignore` of every directory with a .gitignore."""
    for folder, prefix, oid in listing.ignore_files:
        path = prefix + b".gitignore"
        converter = conversions.converter(prefix[:-1]) if conversions is not None else None
        if conversions is None or (converter and not converter.converts_to_git(path)):
            folder.ignore = oid
        elif converter is not None:
            content, conversion = odb.blob(oid), converter.conversion(path)
            if content is not None and conversion is not None:
                content = None if conversion.filter else to_worktree(content, oid, conversion)
            folder.ignore = None if content is None else exclude_hash(content)


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError:
        return None
