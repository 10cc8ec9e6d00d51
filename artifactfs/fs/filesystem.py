"""One mount's file system, put together from its parts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Protocol

import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import StateError
from artifactfs.fs.contents import BlobSource, Contents
from artifactfs.fs.inodes import Base, Defaults, Directory, Row
from artifactfs.fs.journal import ChangeJournal
from artifactfs.fs.listings import Listings
from artifactfs.fs.mutations import Mutations
from artifactfs.fs.operations import Operations
from artifactfs.fs.overlay import Overlay, create_overlay, put_inode, put_meta
from artifactfs.fs.tree import Tree
from artifactfs.fs.upper import Upper
from artifactfs.fs.virtual import VirtualFiles
from artifactfs.fs.xattrs import Xattrs
from artifactfs.git.objects import ObjectDatabase, Oid
from artifactfs.inode_numbers import FIRST_ALLOCATED_INO, ROOT_INO
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)

_SETTLED_NS = 2_000_000_000
"""Clean files are at least this much older than the mount: git reads anew what is as young as
its index (racy entries)."""


class TipLike(Protocol):
    """What a mount is made from. `commit_time` in seconds since the epoch."""

    @property
    def commit(self) -> Oid: ...
    @property
    def tree(self) -> Oid: ...
    @property
    def commit_time(self) -> int: ...


class FileSystem:
    """The file system of one repository, ready to be served by `session.serve`."""

    def __init__(
        self,
        *,
        layout: RepoLayout,
        settings: RepoSettings,
        odb: ObjectDatabase,
        hydrator: BlobSource,
        tip: TipLike | None,
    ) -> None:
        """Open the overlay, or create it from `tip`. Raises: StateError."""
        self.layout = layout
        self.settings = settings
        self.odb = odb
        self.hydrator = hydrator
        self.index_ready = trio.Event()
        """Set it when the index is written: until then reading the gitfile waits."""
        self._upper = Upper(layout.upper)
        try:
            self._open_or_create(tip)
        except BaseException:
            self._upper.close()
            raise

    def _open_or_create(self, tip: TipLike | None) -> None:
        layout, settings = self.layout, self.settings
        uid = os.getuid() if settings.uid is None else settings.uid
        gid = os.getgid() if settings.gid is None else settings.gid
        if not layout.overlay_db.exists():
            _create(layout, self._upper, tip, Defaults(uid, gid, _base_time_ns(tip)))
        self._overlay = overlay = Overlay(layout.overlay_db)
        meta = overlay.meta
        self.base = Base(meta["base_commit"], meta["base_tree"], int(meta["base_time_ns"]))
        defaults = Defaults(uid, gid, self.base.time_ns)
        self.tree = Tree(
            overlay=overlay,
            upper=self._upper,
            listings=Listings(self.odb),
            defaults=defaults,
            known_size=self.hydrator.known_size,
        )
        self.journal = ChangeJournal()
        self.mutations = Mutations(self.tree, self.journal)
        self.contents = Contents(self.tree, self.mutations, self.hydrator)
        self._virtual = VirtualFiles(
            os.fsencode(layout.gitdir),
            self._answer_fsmonitor,
            uid=uid,
            gid=gid,
            time_ns=self.base.time_ns,
        )
        self._virtual.avoid(self.tree.entries(self.tree.root))
        self.operations = Operations(
            name=settings.name,
            tree=self.tree,
            mutations=self.mutations,
            contents=self.contents,
            virtual=self._virtual,
            xattrs=Xattrs(self.tree) if settings.xattrs else None,
            index_ready=self.index_ready,
        )

    def _answer_fsmonitor(self, token: str) -> bytes:
        return self.journal.answer(token, self._directories_below)

    def _directories_below(self, path: bytes, limit: int) -> Iterable[bytes] | None:
        return []

    async def maintain(self) -> None:
        """Background work of a served mount; runs until cancelled."""
        while True:
            await trio.sleep(1)
            if self._overlay.needs_checkpoint:
                await trio.to_thread.run_sync(self._overlay.checkpoint)

    def close(self) -> None:
        """To be called when the mount is no longer served."""
        self._overlay.close()
        self._upper.close()


def _base_time_ns(tip: TipLike | None) -> int:
    latest = time.time_ns() - _SETTLED_NS
    return latest if tip is None else min(tip.commit_time * 1_000_000_000, latest)


def _create(layout: RepoLayout, upper: Upper, tip: TipLike | None, defaults: Defaults) -> None:
    if tip is None or next(iter(upper.names()), None) is not None:
        raise StateError(
            f"overlay database {layout.overlay_db} is missing",
            hint="restore it from a backup; the written files are in the folder 'upper' beside it",
        )
    root = Directory(ROOT_INO, None, b"", 0o040755, tip.tree)
    row: Row = defaults.row(root)
    create_overlay(
        layout.overlay_db,
        [
            put_inode(ROOT_INO, row),
            put_meta("base_commit", tip.commit),
            put_meta("base_tree", tip.tree),
            put_meta("base_time_ns", defaults.time_ns),
            put_meta("next_ino", FIRST_ALLOCATED_INO),
        ],
    )
