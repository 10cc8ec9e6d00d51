"""What a crash left in the data folder: found by the marks of who was there, and mended."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from pathlib import Path

from artifactfs.errors import StateError
from artifactfs.server.metadata.database import DatabaseError, Transaction
from artifactfs.server.storage.gitdir import mend_gitdir
from artifactfs.server.storage.open_marks import marked_ids
from artifactfs.server.storage.settings import DataLayout

log = logging.getLogger(__name__)


def marks_of_last_run(layout: DataLayout) -> list[str] | None:
    """What was being written to when the last server ended; None: an older one, or a backup that
    was put back, made no marks."""
    try:
        return os.listdir(layout.open)
    except FileNotFoundError:
        return None


def sweep(
    layout: DataLayout,
    tx: Transaction,
    *,
    marks: list[str] | None,
    folder: Path | None = None,
    young_s: float = 0,
) -> list[str]:
    """Mend what a crash left: folders that no row names, quarantines, lock files, empty files.

    Of what `marks` (in `folder`) name; without any, of everything. Lock files that are younger
    than `young_s` seconds stay, and so do quarantines then, which `gc` removes: with several
    servers they may be somebody else's. Returns the marks that have to be looked at again.
    Raises: StateError where the database is damaged, so that a row may be there and not be found.
    """
    folder = folder or layout.open
    if marks is None:
        gitdirs = list(layout.repos.glob("*/*.git"))
        pools = list(layout.pools.iterdir())
    else:
        repo_ids, pool_ids = marked_ids(marks)
        gitdirs = [path for each in repo_ids if (path := layout.gitdir(each)).exists()]
        pools = [path for each in pool_ids if (path := layout.pool(each)).exists()]
    unknown: list[Path] = []
    again: set[str] = set()
    for gitdir in gitdirs:
        done = _mend_repo(gitdir, tx, young_s)
        if done is None:
            unknown.append(gitdir)
        elif not done:
            again.add(gitdir.name.removesuffix(".git"))
    unknown += [pool for pool in pools if not _has_row(pool, tx)]
    if unknown:
        _check_database(layout, tx)
    for stranger in unknown:
        log.info("removing a folder that was never finished: %s", stranger.name)
        shutil.rmtree(stranger, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    left = [mark for mark in marks or () if mark.partition(".")[0] in again]
    for mark in set(marks or ()) - set(left):
        (folder / mark).unlink(missing_ok=True)
    return left


def _has_row(pool: Path, tx: Transaction) -> bool:
    return tx.row("SELECT 1 AS one FROM pools WHERE id = :id", {"id": pool.name}) is not None


def _check_database(layout: DataLayout, tx: Transaction) -> None:
    """Read all of it, as no start does that finds everything in order. Raises: StateError."""
    if tx.engine != "sqlite":
        return
    try:
        said = [str(row["integrity_check"]) for row in tx.rows("PRAGMA integrity_check(3)")]
    except (sqlite3.DatabaseError, DatabaseError) as error:
        said = [str(error)]
    if said != ["ok"]:
        raise StateError(
            f"{layout.metadata_db} is damaged: {'; '.join(said)}",
            hint="restore the data folder from a backup",
        )


def _mend_repo(gitdir: Path, tx: Transaction, young_s: float) -> bool | None:
    """None: the database does not know it, it was never finished. False: there is a lock file that
    may still be somebody's."""
    row = tx.row(
        "SELECT default_branch FROM repos WHERE id = :id AND status <> 'importing'",
        {"id": gitdir.name.removesuffix(".git")},
    )
    if row is None:
        return None
    if not young_s:
        for quarantine in (gitdir / "objects").glob("tmp_objdir-*"):
            shutil.rmtree(quarantine, ignore_errors=True)
    done = _remove_stale_locks(gitdir, young_s)
    if mend_gitdir(gitdir, row["default_branch"]):
        log.warning("mended %s", gitdir)
    return done


def _remove_stale_locks(gitdir: Path, young_s: float) -> bool:
    """A killed git leaves ``.lock`` files. Without others on the data, nobody holds them."""
    locks = [gitdir / "packed-refs.lock", gitdir / "HEAD.lock", gitdir / "config.lock"]
    locks = [lock for lock in [*locks, *(gitdir / "refs").rglob("*.lock")] if lock.exists()]
    newest = time_there(gitdir) - young_s if locks and young_s else None
    done = True
    for lock in locks:
        try:
            if newest is not None and lock.stat().st_mtime > newest:
                done = False
                continue
            lock.unlink()
        except FileNotFoundError:
            continue
    return done


def time_there(folder: Path) -> float:
    """What the clock of a file system says, which may be another machine's. Raises: OSError."""
    probe = folder / f".clock.{os.urandom(6).hex()}"
    probe.touch(mode=0o600)
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
