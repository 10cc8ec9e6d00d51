"""The overlay of a mount that is new."""

from __future__ import annotations

import os
from typing import Protocol

from artifactfs.fs.gitview.journal import ChangeJournal
from artifactfs.fs.inodes.clock import now_ns
from artifactfs.fs.inodes.inode import Directory, Owner
from artifactfs.fs.overlay.database import create_overlay, is_missing, missing
from artifactfs.fs.overlay.pending import put_inode, put_meta
from artifactfs.git.objects.database import Oid
from artifactfs.inode_numbers import FIRST_ALLOCATED_INO, ROOT_INO, SECRET_BYTES
from artifactfs.paths import RepoLayout

_RACY_NS = 2_000_000_000
"""Clean files are at least this much older than the mount: git reads anew what is as young as
its index (racy entries)."""

_EARLIEST_S = 315_619_200
"""2 January 1980: zip and other archives hold no earlier local time, in any time zone. Commits made
without a date are of 1970."""


class TipLike(Protocol):
    """What a mount is made from. `commit_time` in seconds since the epoch."""

    @property
    def commit(self) -> Oid: ...
    @property
    def tree(self) -> Oid: ...
    @property
    def commit_time(self) -> int: ...


def _base_time_ns(tip: TipLike | None) -> int:
    latest = now_ns() - _RACY_NS
    return latest if tip is None else min(max(tip.commit_time, _EARLIEST_S) * 1_000_000_000, latest)


def create(
    layout: RepoLayout,
    tip: TipLike | None,
    owner: Owner,
    journal: ChangeJournal,
) -> None:
    """Raises: StateError where there was one, of which written files are left."""
    if tip is None or is_missing(layout):
        raise missing(layout)
    root = Directory(ROOT_INO, None, b"", 0o040755, tip.tree)
    time_ns = _base_time_ns(tip)
    root.time_ns = time_ns
    create_overlay(
        layout.overlay_db,
        [
            put_inode(ROOT_INO, owner.row(root)),
            put_meta("base_commit", tip.commit),
            put_meta("base_tree", tip.tree),
            put_meta("base_time_ns", time_ns),
            put_meta("next_ino", FIRST_ALLOCATED_INO),
            put_meta("ino_secret", os.urandom(SECRET_BYTES)),
            put_meta("closed", journal.dump()),
        ],
    )
