"""Puts the small packs together that refreshes and lazy fetches leave in a gitdir of ours.

Each of them is a file that every git command opens. Only promisor packs are touched: what the
user made (commits not pushed yet) must never be taken for something the remote has.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from artifactfs.git.pack.store import PackFile, PackStore

log = logging.getLogger(__name__)


class _PromisorPacks(PackStore):
    """The packs of a gitdir that only repeat what the remote promised."""

    def packs(self) -> list[PackFile]:
        return [pack for pack in super().packs() if _is_plain_promisor(pack.path)]

    def drop(self, name: str) -> None:
        """A damaged pack stays for `git fsck`: here nothing would fetch its commits again."""


def consolidate_gitdir(gitdir: Path) -> tuple[int, int]:
    """Put small promisor packs together; returns how many there were before and after.

    Safe while git and mounts use the gitdir: the new pack is in place before the old ones go.
    Packs with ``.keep`` or a bitmap stay as they are, and so does everything where git has made a
    multi-pack-index. Raises: OSError (no space), CorruptData.
    """
    folder = gitdir / "objects" / "pack"
    packs = [pack for pack in folder.glob("pack-*.idx") if _is_plain_promisor(pack)]
    if len(packs) < 2 or (folder / "multi-pack-index").exists():
        return len(packs), len(packs)
    store = _PromisorPacks(gitdir / "objects")
    store.clean_temporary()
    store.consolidate(everything=True, damaged=partial(_log_damaged, gitdir))
    return len(packs), len(store.packs())


def _log_damaged(gitdir: Path, name: str) -> None:
    log.warning("%s of %s is damaged: `git fsck` says what it lacks", name, gitdir)


def _is_plain_promisor(pack: Path) -> bool:
    guarded = any(pack.with_suffix(suffix).exists() for suffix in (".keep", ".bitmap"))
    return pack.with_suffix(".promisor").exists() and not guarded
