"""The inode tree: finding, listing and forgetting inodes.

The table holds what the kernel or a task of ours refers to, and their parents. Everything else is
made again from the base tree and the overlay when it is asked for, with the same numbers.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from artifactfs.damage import DamageReport
from artifactfs.fs.inodes import seals
from artifactfs.fs.inodes.clock import advance_to
from artifactfs.fs.inodes.compact import MOST_REFERENCES, CompactFiles
from artifactfs.fs.inodes.conversion import Conversions
from artifactfs.fs.inodes.inode import (
    EMPTY,
    UNKNOWN_SIZE,
    Data,
    Directory,
    Inode,
    Owner,
    Row,
    mode_of_entry,
)
from artifactfs.fs.inodes.listings import Entries, Listings, base_tree_of, is_directory_entry
from artifactfs.fs.kernel.refusal import fail
from artifactfs.fs.overlay import nameless
from artifactfs.fs.overlay.pending import Edit
from artifactfs.fs.overlay.written import Written
from artifactfs.git.objects.database import MissingObject, Oid, TreeEntry
from artifactfs.inode_numbers import ROOT_INO, derive_ino, numbers_in

log = logging.getLogger(__name__)

WARM = 8192
"""Clean files that stay inodes though only the kernel refers to them: 3 MB. What was asked for a
moment ago is asked for again: `lookup`, `getattr`, `read`."""

_NO_NAMES: Mapping[bytes, int] = MappingProxyType({})
_NO_ROWS: Mapping[int, Row] = MappingProxyType({})


def _references_alone() -> int:
    """What `sys.getrefcount` says of an inode that was looked up in a table, where nobody else has
    it: no task over an await, and nobody above on the stack."""
    table: dict[int, Inode] = {0: Inode(0, None, b"", 0, None)}
    inode = table.get(0)
    return sys.getrefcount(inode)


_ALONE = _references_alone()


class Held(NamedTuple):
    """A clean file to which the kernel got a reference."""

    ino: int
    mode: int
    oid: Oid


class Tree:
    """Inodes by number. Nothing here waits, neither for the network nor for other tasks."""

    def __init__(
        self,
        *,
        written: Written,
        listings: Listings,
        owner: Owner,
        known_size: Callable[[Oid], int | None],
        conversions: Conversions,
        damage: DamageReport,
        after_clean_end: bool,
    ) -> None:
        """`after_clean_end`: no file was written since its seal was made."""
        self.damage = damage
        self.after_clean_end = after_clean_end
        self.unsealed: set[int] = set()
        """Inodes whose upper file was written since its seal was made."""
        self.committed: dict[int, Oid] = {}
        """Inodes with data that is the blob which HEAD has at their path: see `Compaction`."""
        self.taken_over = False
        """Another process has served the mount: the kernel may know what is not in memory."""
        self.is_arriving = False
        """Only the root of the base tree is here: see `arriving`."""
        self.keeps_nameless = False
        """What is in use without a name is to outlive this process."""
        self._let_go: list[int] = []
        """Inodes without a name of which the kernel lets go, and that are written down still."""
        self._compared: set[int] = set()
        """Inodes whose upper file is what its seal says, or was written by this process."""
        self._overlay = written.overlay
        self._upper = written.upper
        self._small = written.small
        self._opened = written.opened
        self._ino_secret = written.overlay.ino_secret
        self._listings = listings
        self.owner = owner
        self._known_size = known_size
        self._conversions = conversions
        self._table: dict[int, Inode] = {}
        self._compact = CompactFiles()
        self._warm: deque[int] = deque()
        """Clean files in the table, in the order in which they came."""
        root = self._from_row(None, b"", ROOT_INO)
        assert type(root) is Directory
        self.root = root
        self._table[ROOT_INO] = root

    # Finding

    def get(self, ino: int) -> Inode:
        """The inode `ino`, to which the kernel holds a reference. Raises: KeyError."""
        inode = self.find(ino)
        if inode is None:
            raise KeyError(ino)
        return inode

    def find(self, ino: int) -> Inode | None:
        """The inode `ino` if anybody refers to it. Raises: MissingObject."""
        inode = self._table.get(ino)
        return self._take_out(ino) if inode is None else inode

    def directory(self, ino: int) -> Directory:
        """Raises: KeyError, NotADirectoryError."""
        inode = self.get(ino)
        if type(inode) is not Directory:
            fail(errno.ENOTDIR)
        return inode

    def __len__(self) -> int:
        return len(self._table) + len(self._compact)

    def inodes(self) -> Iterator[Inode]:
        """Everything that is more than the base tree says, and more."""
        return iter(list(self._table.values()))

    def names(self, directory: Directory) -> Mapping[bytes, int]:
        """The dirents of the overlay in `directory`."""
        names = directory.names
        if names is not None:
            return names
        if directory.row is None:
            return _NO_NAMES
        directory.names = names = self._overlay.names(directory.ino)
        return names

    def entries(self, directory: Directory) -> Entries:
        """The entries of its base tree, whether or not the overlay hides them."""
        return self._listings.entries(directory.oid)

    def lookup(
        self, directory: Directory, name: bytes, rows: Mapping[int, Row] = _NO_ROWS
    ) -> Inode | None:
        """The inode called `name`, None where there is none. `rows`: what the overlay says of
        the directory (`Overlay.rows_in`), where it was asked already.

        Raises: MissingObject, OSError.
        """
        ino = self.names(directory).get(name)
        if ino is not None:
            if ino == 0:
                return None
            inode = self._table.get(ino)
            if inode is None:
                row = rows.get(ino)
                if row is None:
                    inode = self._from_row(directory, name, ino)
                else:
                    inode = self._with_row(directory, name, ino, row)
                self.insert(inode)
            elif inode.name != name or inode.parent is not directory:
                self._check_link(inode, directory, name)
            return inode
        entry = self._listings.entries(directory.oid).get(name)
        return None if entry is None else self._clean(directory, entry)

    def known_directory(self, directory: Directory, name: bytes) -> Directory | None:
        """The directory `name` if the kernel refers to it; makes nothing. Raises: OSError."""
        ino = self.names(directory).get(name)
        if ino is None:
            ino = derive_ino(self._ino_secret, directory.ino, name)
        inode = self._table.get(ino)
        if type(inode) is not Directory or inode.nlookup <= 0 or inode.parent is not directory:
            return None
        return inode

    def listing(self, directory: Directory) -> list[bytes]:
        """Names in a stable order. Raises: MissingObject, OSError."""
        names = self.names(directory)
        entries = self.entries(directory)
        if not names:
            return list(entries)
        found = [name for name in entries if name not in names]
        found.extend(name for name, ino in names.items() if ino)
        found.sort()
        return found

    def is_empty(self, directory: Directory) -> bool:
        names = self.names(directory)
        return not any(names.values()) and all(name in names for name in self.entries(directory))

    def in_base(self, directory: Directory, name: bytes) -> bool:
        """Whether the base tree has `name`, so that its removal has to be remembered."""
        return name in self.entries(directory)

    def by_number(self, ino: int) -> Inode | None:
        """An inode that has a row, found through the overlay where it is not in memory."""
        inode = self.find(ino)
        if inode is not None:
            return inode
        links = self._overlay.links(ino)
        if not links:
            return None
        parent_ino, name = links[0]
        parent = self.by_number(parent_ino)
        return self.lookup(parent, name) if type(parent) is Directory else None

    def links(self, inode: Inode) -> list[tuple[Directory, bytes]]:
        """Every place that `inode` is linked at."""
        parent = inode.parent
        if inode.row is None or inode.row.nlink < 2 or type(inode) is Directory:
            return [(parent, inode.name)] if parent is not None else []
        found = []
        for parent_ino, name in self._overlay.links(inode.ino):
            directory = self.by_number(parent_ino)
            if type(directory) is Directory:
                found.append((directory, name))
        return found

    # Describing

    def count_subdirectories(self, directory: Directory) -> int:
        """Fill in `subdirectories`, which link counts need."""
        count = directory.subdirectories
        if count < 0:
            count = self._listings.subdirectories(directory.oid)
            names = self.names(directory)
            if names:
                count -= sum(
                    1
                    for name in names
                    if (entry := self.entries(directory).get(name)) and is_directory_entry(entry)
                )
                count += self._overlay.count_directories(directory.ino)
            directory.subdirectories = count
        return count

    def refresh_attributes(self, inode: Inode, sizes: Mapping[Oid, int] | None = None) -> bool:
        """Bring size, blocks and times up to date. False where the size is not known here.

        `sizes`: of blobs, where those that are known were looked up already.
        """
        data = inode.data
        if data is not None:
            if data.blocks < 0:
                self.look_at_upper(inode, data)
            data.seen = inode.size > 0
            return True
        if type(inode) is Directory:
            if inode.subdirectories < 0:
                try:
                    self.count_subdirectories(inode)
                except OSError as error:  # of one of the names in it, not of the directory
                    log.error("the links of inode %d cannot be counted: %s", inode.ino, error)
                except MissingObject:
                    if not self.is_arriving:
                        raise
            return True
        if inode.size != UNKNOWN_SIZE:
            return True
        oid = inode.oid
        if oid is None:
            size: int | None = 0
        elif stat.S_ISREG(inode.mode) and not self._conversions.shows_blob(inode):
            size = self._conversions.known_size(inode)
        else:
            size = self._known_size(oid) if sizes is None else sizes.get(oid)
        if size is None:
            return False
        inode.size = size
        return True

    def look_at_upper(self, inode: Inode, data: Data) -> None:
        """Take blocks and times from the upper file, see `Row`."""
        row = inode.row
        assert row is not None
        if row.extent is not None:
            data.blocks = (row.extent.size + 511) >> 9
            return
        if data.lost:
            data.blocks = 0
            return
        try:
            found = os.stat(data.fd) if data.fd >= 0 else self._upper.stat(inode.ino)
        except (FileNotFoundError, NotADirectoryError):
            self.lose(inode, data, "is missing")
            return
        data.blocks = found.st_blocks
        if found.st_mtime_ns != row.mtime_ns:
            row.mtime_ns = row.ctime_ns = found.st_mtime_ns
            advance_to(found.st_mtime_ns)

    def give_up_data(self, inode: Inode) -> None:
        """The content of `inode` is not ours any more: its row says so already."""
        if inode.data is not None:
            self._opened.close(inode.data)
            inode.data = None
        self.forget_upper(inode.ino)

    def forget_upper(self, ino: int) -> None:
        """Remove an upper file that no row names any more."""
        self._upper.remove(ino)
        self.unsealed.discard(ino)
        self.committed.pop(ino, None)
        self._compared.discard(ino)
        if self.damage:
            self.damage.gone(self._upper.file(ino))

    def stamp(self, inode: Inode, mtime_ns: int) -> None:
        """Set the mtime of the upper file."""
        data = inode.data
        if data is not None and data.lost:
            return
        self.unsealed.add(inode.ino)
        if data is not None and data.fd >= 0:
            os.utime(data.fd, ns=(mtime_ns, mtime_ns))
        else:
            self._upper.set_mtime(inode.ino, mtime_ns)

    def path(self, inode: Inode) -> bytes | None:
        """The path from the root, None where it has no name any more."""
        parts: list[bytes] = []
        while inode is not self.root:
            parts.append(inode.name)
            parent = inode.parent
            if parent is None:
                return None
            inode = parent
        return b"/".join(reversed(parts))

    def child_path(self, directory: Directory, name: bytes) -> bytes | None:
        path = self.path(directory)
        if path is None:
            return None
        return path + b"/" + name if path else name

    def trees_above(self, inode: Inode) -> tuple[Oid, ...]:
        """Base trees of the directories above, nearest first."""
        found = []
        directory = inode.parent
        while directory is not None:
            if directory.oid is not None:
                found.append(directory.oid)
            directory = directory.parent
        return tuple(found)

    # The table

    def insert(self, inode: Inode) -> None:
        self._table[inode.ino] = inode
        if inode.parent is not None:
            inode.parent.children += 1

    def move(self, inode: Inode, parent: Directory | None, name: bytes) -> None:
        """Make (`parent`, `name`) the place where `inode` is found from now on."""
        before = inode.parent
        if parent is not None:
            parent.children += 1
        elif inode.extent is not None:
            self._small.held[inode.ino] = inode.extent.segment
        elif self.in_kernel(inode) and inode.oid is not None and not inode.has_data:
            self._conversions.orphaned(inode)
        inode.parent = parent
        inode.name = name
        if before is not None:
            before.children -= 1
            self.drop_if_unused(before)

    def forget(self, ino: int, count: int) -> None:
        """The kernel lets go of `count` references."""
        inode = self._table.get(ino)
        if inode is not None:
            inode.nlookup -= count
            self.drop_if_unused(inode)
        else:
            self.drop_if_unused(self._compact.forget(ino, count))

    def in_kernel(self, inode: Inode) -> bool:
        """Whether the kernel may know it."""
        return inode.nlookup > 0 or self.taken_over

    # Without a name

    def nameless(self, inode: Inode, row: Row) -> Edit:
        """What is written down of an inode with this last `row`."""
        parent = ROOT_INO if inode.parent is None else inode.parent.ino
        return nameless.keep(inode.ino, parent, inode.name, row)

    def recall_nameless(self) -> None:
        """Take over from a process before what programs still use."""
        for ino, parent_ino, name, row in nameless.kept(self._overlay.meta):
            lost = row.has_upper and not self._upper.exists(ino)
            if lost or (row.extent is not None and not self._small.has(row.extent)):
                self._let_go.append(ino)  # the process before was about to say so
                continue
            inode = self._with_row(None, b"", ino, row)
            inode.nlookup = 1
            if type(inode) is Directory:
                inode.names, inode.oid, inode.subdirectories = {}, None, -1
            elif row.extent is not None:
                self._small.held[ino] = row.extent.segment
            elif not row.has_data and row.oid is not None:
                parent = self.by_number(parent_ino)
                if type(parent) is Directory:
                    self._conversions.orphaned_in(parent, name, inode)
            self._table[ino] = inode

    def forget_nameless(self, *, at_least: int = 1) -> None:
        """Write down of whom the kernel has let go, if that are so many. Raises: OSError."""
        if len(self._let_go) >= at_least:
            gone, self._let_go = self._let_go, []
            self._overlay.apply([nameless.let_go(ino) for ino in gone], frees=True)

    def drop_if_unused(self, inode: Inode | None) -> None:
        """Drop `inode`, and its parents, where nothing refers to them any more."""
        while inode is not None and inode.nlookup <= 0 and not inode.pins:
            if inode is self.root or (type(inode) is Directory and inode.children):
                return
            if self._table.pop(inode.ino, None) is None:
                return
            self._opened.forget(inode)
            if not inode.linked:
                if self.keeps_nameless:
                    self._let_go.append(inode.ino)
                self._conversions.dropped(inode)
                if inode.extent is not None:
                    self._small.held.pop(inode.ino, None)
                elif inode.has_data:
                    self.forget_upper(inode.ino)
            parent = inode.parent
            if parent is not None:
                parent.children -= 1
            inode = parent

    # For changes of it

    def apply(self, edits: Sequence[Edit], *, frees: bool = False) -> None:
        """Have `edits` written down. Raises: OSError; then nothing has changed."""
        self._overlay.apply(edits, frees=frees)

    def take_row(self, inode: Inode, row: Row) -> None:
        """Let `row`, which is written down, replace what is in memory."""
        before = inode.extent if inode.linked else None
        after = row.extent if row.nlink > 0 else None
        if before is not after:
            self._small.account(before, after)
        inode.row = row
        inode.mode = row.mode
        inode.oid = row.oid

    # Making inodes

    def _clean(self, directory: Directory, entry: TreeEntry) -> Inode:
        ino = derive_ino(self._ino_secret, directory.ino, entry.name)
        inode = self.find(ino)
        if inode is not None:
            if inode.parent is not directory or inode.name != entry.name:
                self._refuse_number(inode, directory, entry.name)
            return inode
        mode = mode_of_entry(entry.mode)
        if stat.S_ISDIR(mode):
            inode = Directory(ino, directory, entry.name, mode, base_tree_of(entry))
        else:
            inode = Inode(ino, directory, entry.name, mode, entry.oid)
        self._table[ino] = inode
        directory.children += 1
        if type(inode) is Inode:
            self._keep_warm(ino)
        return inode

    # Files that only the kernel refers to

    def clean_files(self, directory: Directory) -> Callable[[bytes, int], Held | None]:
        """A function that gives the kernel one reference more to the clean file NAME in
        `directory`, without an inode: POSITION is where its base tree has it. Its answer is None
        where it takes `lookup`: it is no such file, or somebody works with it. Valid until
        something changes. Raises: MissingObject."""
        names, entries = self.names(directory), self.entries(directory)
        table, hold_reference, tree = self._table, self._compact.hold, directory.oid
        number = numbers_in(self._ino_secret, directory.ino)

        def hold(name: bytes, position: int) -> Held | None:
            entry = entries.get(name)
            if entry is None or name in names or is_directory_entry(entry):
                return None
            if names:  # what is listed is not what the base tree has
                position = self._listings.position(tree, name)
            ino = number(name)
            if ino in table or not hold_reference(ino, directory, position):
                return None
            return Held(ino, mode_of_entry(entry.mode), entry.oid)

        return hold

    def _take_out(self, ino: int) -> Inode | None:
        """An inode of a file that only the kernel refers to. Raises: MissingObject."""
        held = self._compact.find(ino)
        if held is None:
            return None
        directory, position, references = held
        entry = self._listings.at(directory.oid, position)
        if entry is None or derive_ino(self._ino_secret, directory.ino, entry.name) != ino:
            entry = self._look_for(ino, directory)
        directory.children += 1
        self._compact.take(ino)
        self._table[ino] = inode = Inode(
            ino, directory, entry.name, mode_of_entry(entry.mode), entry.oid
        )
        inode.nlookup = references
        self._keep_warm(ino)
        return inode

    def _look_for(self, ino: int, directory: Directory) -> TreeEntry:
        """The entry of `directory` with the number `ino`. Raises: MissingObject, KeyError."""
        entries = list(self.entries(directory).values())
        inos = [*map(numbers_in(self._ino_secret, directory.ino), [e.name for e in entries])]
        self._compact.reindex(directory, inos)
        try:
            return entries[inos.index(ino)]
        except ValueError:
            raise KeyError(ino) from None

    def _keep_warm(self, ino: int) -> None:
        """Note a clean file, and put away what came longest ago."""
        warm = self._warm
        warm.append(ino)
        for _ in range(2):
            if len(warm) > WARM:
                self._put_away(warm.popleft())

    def _put_away(self, ino: int) -> None:
        """Keep of a clean file that nobody works with only what the kernel's references need."""
        inode = self._table.get(ino)
        if inode is None or inode.row is not None:
            return
        parent = inode.parent
        alone = sys.getrefcount(inode) == _ALONE and not inode.pins
        if parent is None or not alone or not 0 < inode.nlookup <= MOST_REFERENCES:
            self._warm.append(ino)
            return
        position = self._listings.position(parent.oid, inode.name)
        if self._compact.hold(ino, parent, position, inode.nlookup):
            parent.children -= 1
            self._opened.forget(inode)
            del self._table[ino]

    def _check_link(self, inode: Inode, directory: Directory, name: bytes) -> None:
        """Of an inode that is in memory as another name's: it has to have more than one."""
        if inode.row is None or inode.row.nlink < 2:
            self._refuse_number(inode, directory, name)

    def check_number(self, inode: Inode) -> None:
        """Before a clean inode gets a row: that no other name has one under this number."""
        if not self._ino_secret:
            for parent, name in self._overlay.links(inode.ino):
                if inode.parent is None or (parent, name) != (inode.parent.ino, inode.name):
                    self._refuse_number(inode, inode.parent or self.root, name)

    def _refuse_number(self, inode: Inode, directory: Directory, name: bytes) -> NoReturn:
        """Two names have one number, so one of them cannot be shown. Raises: Refused (EIO)."""
        here = os.fsdecode(self.child_path(directory, name) or name)
        there = os.fsdecode(self.path(inode) or inode.name)
        self.damage.found(
            here,
            f"has the inode number of {there}, and cannot be shown",
            "somebody chose these names for that: rename one of them in the repository",
        )
        fail(errno.EIO)

    def _from_row(self, parent: Directory | None, name: bytes, ino: int) -> Inode:
        row = self._overlay.row(ino)
        if row is None:
            raise OSError(5, f"inode {ino} has no row")
        return self._with_row(parent, name, ino, row)

    def _with_row(self, parent: Directory | None, name: bytes, ino: int, row: Row) -> Inode:
        kind = Directory if stat.S_ISDIR(row.mode) else Inode
        inode = kind(ino, parent, name, row.mode, row.oid)
        inode.row = row
        if type(inode) is Directory:
            inode.time_ns = row.base_time_ns
        if row.has_data:
            self._read_data(inode)
        elif row.target is not None:
            inode.size = len(row.target)
        elif not stat.S_ISREG(row.mode) and row.oid is None and kind is Inode:
            inode.size = 0
        return inode

    def _read_data(self, inode: Inode) -> None:
        """Size and times of a file with data."""
        inode.data = data = Data()
        row = inode.row
        assert row is not None
        if row.extent is not None:
            if not self._small.has(row.extent):
                if self._small.may_have_been_lost(row.extent):
                    log.warning("inode %d: what was written was lost with the power", inode.ino)
                    row.extent = EMPTY
                else:
                    self._small.report_missing(row.extent)
                    data.lost = True
            inode.size = row.extent.size
        else:
            self._find_upper(inode, data)

    def _find_upper(self, inode: Inode, data: Data) -> None:
        """Of an upper file that was lost the name stays, to be looked at, moved and removed; its
        content is EIO."""
        seal = seals.decode(self._overlay.xattrs(inode.ino).get(seals.NAME))
        wrong: str | None
        try:
            inode.size = self._upper.stat(inode.ino).st_size
        except (FileNotFoundError, NotADirectoryError):
            wrong = "is missing"
        else:
            wrong = None
            if seal is not None:
                wrong = seals.cut(seal, inode.size, after_clean_end=self.after_clean_end)
            self.look_at_upper(inode, data)
        if inode.ino in self._compared:
            wrong = wrong if wrong == "is missing" else None
        elif wrong is None:
            data.seal = seal
        if wrong is not None:
            inode.size = max(1, inode.size, 0 if seal is None else seal.size)  # 0 is not read
            self.lose(inode, data, wrong)

    def lose(self, inode: Inode, data: Data, wrong: str) -> None:
        """The upper file of `inode` cannot be trusted: `wrong` says why."""
        self._opened.close(data)
        data.lost = True
        data.seal = None
        data.blocks = 0
        self.report(inode, wrong)

    def report(self, inode: Inode, wrong: str) -> None:
        """Say what is wrong with the upper file of `inode`."""
        path = os.fsdecode(self.path(inode) or b"(a file without a name)")
        self.damage.found(
            self._upper.file(inode.ino),
            f"{wrong}: {path} cannot be read",
            f"restore it from a backup with the mount unmounted, or remove or overwrite {path}"
            " in the mount",
        )

    def compared(self, inode: Inode) -> None:
        """The upper file of `inode` was found to be what it was, or is ours from now on."""
        if inode.data is not None:
            inode.data.seal = None
        self._compared.add(inode.ino)
