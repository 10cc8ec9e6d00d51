"""Decides which clean files are shown as git would have checked them out: with CRLF, expanded
``$Id$``, in another encoding, or through a filter.

What decides is the base tree's .gitattributes above a file, and the settings of the moment when the
repository was first mounted (``conversion.json``): as in a clone, where later changes of either
rewrite nothing. Most directories are *plain*: nothing that bears on them converts anything, which
is known once the attribute files above are here, and costs one comparison per file from then on.

An attribute file that is not here yet leaves its directories undecided: sizes are not known there,
and whoever asks for one waits for it. Those that were read are kept in ``attributes/OID``, so that
decisions can be made offline, whatever was evicted.

Moving a file must not change its bytes, so what would show others at its new place is given data
of its own first (see `Contents.before_move`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import trio

from artifactfs.damage import DamageReport
from artifactfs.errors import ArtifactFSError
from artifactfs.fs.inodes.inode import Directory, Inode
from artifactfs.fs.inodes.listings import Listings
from artifactfs.fs.inodes.scope import PLAIN, AttributeFile, Scope
from artifactfs.git.checkout.attributes import FILE_NAME, Source, parse
from artifactfs.git.checkout.conversion import (
    CONFIG_KEYS,
    Conversion,
    ConversionSettings,
    Converter,
    ancestors,
)
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.objects.database import Oid
from artifactfs.git.pack.format import object_id
from artifactfs.hydration.local.blobs import Blob, Found, InPack, ReadContext
from artifactfs.paths import RepoLayout
from artifactfs.system.files import replace_file

log = logging.getLogger(__name__)


class AttributeBlobs(Protocol):
    """Where attribute files come from."""

    def find(self, oid: Oid) -> Found: ...
    async def open(self, oid: Oid, context: ReadContext) -> Blob: ...


_UNDECIDED = Scope(b"(undecided)")
"""The settings are not known yet."""


class Conversions:
    """The decisions for one mount. Only what says so waits."""

    def __init__(
        self,
        layout: RepoLayout,
        listings: Listings,
        blobs: AttributeBlobs,
        damage: DamageReport,
        mount_point: str,
    ) -> None:
        self._mount_point = mount_point
        self._damage = damage
        self._layout = layout
        self._listings = listings
        self._blobs = blobs
        self._kept = layout.attributes
        self._contents: dict[Oid, bytes] = {}
        self._absent: set[Oid] = set()
        self._converters: dict[tuple[AttributeFile, ...], Converter] = {}
        self._wanted: dict[Oid, AttributeFile] = {}
        self._asked: set[Oid] = set()
        self._locks: dict[Oid, trio.Lock] = {}
        self._wake = trio.Event()
        self._settings_known = trio.Event()
        self._age = 0
        """How often scopes were forgotten; those of directories are of some age."""
        self._converts = False
        """Whether any file may have been shown converted."""
        self._sizes: dict[Conversion, dict[Oid, int]] = {}
        self._orphans: dict[int, tuple[Scope, bytes]] = {}
        self._settings = self._read_settings()

    # Settings

    async def wait_for_settings(self) -> None:
        """Wait until the settings are known."""
        await self._settings_known.wait()

    def _read_settings(self) -> ConversionSettings | None:
        try:
            settings = ConversionSettings.from_json(
                self._layout.conversion.read_text(errors="replace")
            )
        except FileNotFoundError:
            return None
        except ArtifactFSError as error:
            how = "the settings of git's configuration of now are taken"
            self._damage.mended(self._layout.conversion, error.message, how)
            return None
        self._settings_known.set()
        return settings

    async def _take_settings(self) -> None:
        """Keep what git's configuration says now. A git that fails leaves the defaults."""
        arguments = ("config", "-z", "--get-regexp", CONFIG_KEYS)
        try:
            printed = await run_git(*arguments, gitdir=self._layout.gitdir)
        except GitFailed as error:
            if error.returncode != 1:  # 1: nothing is configured
                log.warning("conversions are decided without git's settings: %s", error.message)
            printed = b""
        read = functools.partial(
            ConversionSettings.read, printed, self._layout.gitdir, self._mount_point
        )
        settings = await trio.to_thread.run_sync(read)
        text = settings.to_json().encode()
        try:
            write = functools.partial(replace_file, self._layout.conversion, text, sync=True)
            await trio.to_thread.run_sync(write)
        except OSError as error:
            log.warning("the settings of conversions are taken anew at the next start: %s", error)
        self._settings = settings
        self._settings_known.set()

    async def run(self, root: Directory) -> None:
        """Take the settings where there are none yet, then fetch attribute files ahead of demand.

        Runs until cancelled.
        """
        if self._settings is None:
            await self._take_settings()
        self.scope(root)
        async with trio.open_nursery() as nursery:
            while True:
                wanted, self._wanted = self._wanted, {}
                for file in wanted.values():
                    nursery.start_soon(self._fetch_quietly, file)
                await self._wake.wait()
                self._wake = trio.Event()

    # Scopes

    def scope(self, directory: Directory) -> Scope:
        """What bears on the files of `directory`. Raises: MissingObject."""
        found: Scope | None = directory.scope
        if found is None or directory.scope_age != self._age:
            if self._settings is None:
                return _UNDECIDED
            found = directory.scope = self._look_up(directory)
            directory.scope_age = self._age
        return found

    def _look_up(self, directory: Directory) -> Scope:
        parent = directory.parent
        above = self.scope(parent) if parent is not None else Scope(b"")
        if above is PLAIN:
            if self._own(directory.oid) is None:
                return PLAIN
            scope = self.whole(directory)
        else:
            scope = self.below(above, directory, directory.name)
        converter = self._converter(scope)
        return PLAIN if converter is not None and not converter.can_convert() else scope

    def whole(self, directory: Directory) -> Scope:
        """The scope of `directory`, also where it is plain."""
        parent = directory.parent
        above = Scope(b"") if parent is None else self.whole(parent)
        return self.below(above, directory, directory.name)

    def below(self, above: Scope, directory: Directory, name: bytes) -> Scope:
        """The scope of `directory`, if it lay in one with the scope `above` under `name`."""
        path = above.file_path(name)
        own = self._own(directory.oid)
        return Scope(path, above.files if own is None else (*above.files, (path, own)))

    def _own(self, tree: Oid | None) -> Oid | None:
        entry = self._listings.entries(tree).get(FILE_NAME)
        return entry.oid if entry is not None and stat.S_ISREG(entry.mode) else None

    def scope_in(self, tree: Oid, directory: bytes) -> Scope:
        """The scope of `directory` where `tree` is the base. Raises: MissingObject."""
        scope, at = Scope(b""), tree
        files: tuple[AttributeFile, ...] = ()
        for place in ancestors(directory):
            if place:
                at = self._listings.entries(at)[place.rpartition(b"/")[2]].oid
            own = self._own(at)
            files = files if own is None else (*files, (place, own))
            scope = Scope(place, files)
        return scope

    async def converted_among(self, tree: Oid, paths: Iterable[bytes]) -> frozenset[bytes]:
        """Those of `paths`, regular files of `tree`, that git would convert. Waits for attribute
        files; a path of which one cannot be had counts. Raises: MissingObject."""
        scopes: dict[bytes, Scope] = {}
        found = set()
        for path in paths:
            directory, _, name = path.rpartition(b"/")
            scope = scopes.get(directory)
            if scope is None:
                scope = scopes[directory] = self.scope_in(tree, directory)
            try:
                if await self.at(scope, name) is not None:
                    found.add(path)
            except ArtifactFSError:
                found.add(path)
        return frozenset(found)

    async def rules_change(self, new: Oid, paths: Iterable[bytes]) -> bool:
        """Whether a move of the base to the tree `new` may change what clean files show that do
        not differ themselves; `paths` are those that differ. Waits for attribute files.

        Raises: MissingObject.
        """
        changed = [path.rpartition(b"/")[0] for path in paths if _is_attribute_file(path)]
        if changed and self._converts:
            return True
        for directory in changed:
            try:
                scope = self.scope_in(new, directory)
                await self.at(scope, FILE_NAME)
            except KeyError:  # the directory goes
                continue
            except ArtifactFSError:
                return True
            converter = self._converter(scope)
            if converter is None or converter.can_convert():
                return True
        return False

    def forget_scopes(self) -> None:
        """Directories were moved, or are based on other trees now."""
        self._age += 1

    def orphaned(self, inode: Inode) -> None:
        """The last name of `inode` is about to go, while it is open."""
        if inode.parent is not None:
            self.orphaned_in(inode.parent, inode.name, inode)

    def orphaned_in(self, parent: Directory, name: bytes, inode: Inode) -> None:
        """The same where that name has gone."""
        if stat.S_ISREG(inode.mode):
            scope = self.scope(parent)
            if scope is not PLAIN:
                self._orphans[inode.ino] = scope, name

    def dropped(self, inode: Inode) -> None:
        """Nobody refers to `inode` any more."""
        if self._orphans:
            self._orphans.pop(inode.ino, None)

    # Decisions

    def shows_blob(self, inode: Inode) -> bool:
        """Whether the regular file `inode` is known to be its blob, byte for byte."""
        directory = inode.parent
        if directory is None:
            return inode.ino not in self._orphans
        return self.shows_blob_at(directory, inode.name)

    def shows_blob_at(self, directory: Directory, name: bytes) -> bool:
        """The same for any regular file of `directory` called `name`."""
        scope = directory.scope
        if scope is None or directory.scope_age != self._age:
            scope = self.scope(directory)
        if scope is PLAIN:
            return True
        converter = self._converter(scope)
        if converter is None:
            return False
        if not converter.can_convert():
            directory.scope = PLAIN
            return True
        return converter.conversion(scope.file_path(name)) is None

    def decided(self, inode: Inode) -> Conversion | None:
        """What `inode` gets, where that can be told now and it has one name; else None."""
        directory = inode.parent
        if directory is None or (inode.row is not None and inode.row.nlink > 1):
            return None
        scope = self.scope(directory)
        converter = self._converter(scope) if scope is not PLAIN else None
        return None if converter is None else converter.conversion(scope.file_path(inode.name))

    def known_size(self, inode: Inode) -> int | None:
        """The size of a converted file, where it was converted since the start."""
        conversion = self.decided(inode)
        sizes = self._sizes.get(conversion) if conversion is not None else None
        return sizes.get(inode.oid) if sizes is not None and inode.oid is not None else None

    def note_size(self, oid: Oid, conversion: Conversion, size: int) -> None:
        """Filters may make different contents of one blob, so those are not remembered here."""
        if conversion.filter is None:
            self._sizes.setdefault(conversion, {})[oid] = size

    async def of(self, inode: Inode) -> Conversion | None:
        """What `inode`, a regular file, gets. Waits for settings and attribute files.

        Raises: HydrationError.
        """
        if not self._settings_known.is_set():
            await self._settings_known.wait()
        directory = inode.parent
        if directory is None:
            scope, name = self._orphans.get(inode.ino, (PLAIN, b""))
        else:
            scope, name = self.scope(directory), inode.name
        return await self.at(scope, name)

    async def at(self, scope: Scope, name: bytes) -> Conversion | None:
        """The same for a file `name` in a directory with `scope`."""
        if scope is PLAIN:
            return None
        while (converter := self._converter(scope)) is None:
            await self._settings_known.wait()
            for file in scope.files:
                await self._fetch(file)
        return converter.conversion(scope.file_path(name)) if converter.can_convert() else None

    def moves_freely(self, inode: Inode, old: Directory, new: Directory, name: bytes) -> bool:
        """Whether nothing changes its bytes when `inode` moves from `old` to `new` as `name`."""
        if self._settings is None:
            return False
        if type(inode) is not Directory and self.scope(old) is self.scope(new) is PLAIN:
            return True
        before, after = self.whole(old), self.whole(new)
        if before.files != after.files:
            return False
        converter = self._converter(before)
        if converter is None or (converter.by_path and converter.can_convert()):
            return False
        return type(inode) is Directory or inode.name == name or not converter.can_convert()

    def _converter(self, scope: Scope) -> Converter | None:
        """None: an attribute file is not here, and is asked for."""
        files = scope.files
        found = self._converters.get(files)
        if found is None and self._settings is not None and scope is not _UNDECIDED:
            missing = [file for file in files if not self._is_here(file[1])]
            if missing:
                self._ask_for(missing)
                return None
            sources = [
                Source(place, parse(self._contents[oid], macros=not place)) for place, oid in files
            ]
            found = self._converters[files] = Converter(self._settings, sources)
            self._converts = self._converts or found.can_convert()
        return found

    # Attribute files

    def _is_here(self, oid: Oid) -> bool:
        if oid in self._contents:
            return True
        if oid in self._absent:
            return False
        content = _read_kept(self._kept, oid)
        if content is None:
            blob = self._blobs.find(oid)
            if blob is None or isinstance(blob, InPack):
                self._absent.add(oid)
                return False
            content = self._keep(oid, blob)
        self._contents[oid] = content
        return True

    def _ask_for(self, files: Iterable[AttributeFile]) -> None:
        """Have them fetched in the background, once: whoever waits for one asks again."""
        for file in files:
            if file[1] not in self._asked:
                self._asked.add(file[1])
                self._wanted[file[1]] = file
                self._wake.set()

    async def _fetch(self, file: AttributeFile) -> None:
        place, oid = file
        path = place + b"/" + FILE_NAME if place else FILE_NAME
        async with self._locks.setdefault(oid, trio.Lock()):
            if oid not in self._contents:
                blob = await self._blobs.open(oid, ReadContext(path=path))
                self._contents[oid] = self._keep(oid, blob)

    async def _fetch_quietly(self, file: AttributeFile) -> None:
        with contextlib.suppress(ArtifactFSError):
            await self._fetch(file)

    def _keep(self, oid: Oid, blob: Blob) -> bytes:
        """Its content, kept on this disk from now on."""
        content = blob.read(0, blob.size)
        blob.close()
        try:
            self._kept.mkdir(mode=0o700, exist_ok=True)
            replace_file(self._kept / oid.hex(), content)
        except OSError as error:
            log.debug("an attribute file is not kept: %s", error)
        return content


def _is_attribute_file(path: bytes) -> bool:
    return path[path.rfind(b"/") + 1 :] == FILE_NAME


def _read_kept(folder: Path, oid: Oid) -> bytes | None:
    """What `_keep` wrote, unless it was damaged: it is not synced."""
    try:
        content = (folder / oid.hex()).read_bytes()
    except OSError:
        return None
    return content if object_id("blob", content) == oid else None
