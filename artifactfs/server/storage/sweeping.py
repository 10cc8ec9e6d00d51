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


def sweep(layout: DataLayout, tx: Transaction, *, marks: list[str] | None) -> None:
    """Mend what a crash left: folders that no row names, quarantines, lock files, empty files.

    Of what `marks` name; without any, of everything. Raises: StateError where the database is
    damaged, so that a row may be there and not be found.
    """
    if marks is None:
        gitdirs = list(layout.repos.glob("*/*.git"))
        pools = list(layout.pools.iterdir())
    else:
        repo_ids, pool_ids = marked_ids(marks)
        gitdirs = [path for each in repo_ids if (path := layout.gitdir(each)).exists()]
        pools = [path for each in pool_ids if (path := layout.pool(each)).exists()]
    left = [gitdir for gitdir in gitdirs if not _mend_repo(gitdir, tx)]
    left += [pool for pool in pools if not _has_row(pool, tx)]
    if left:
        _check_database(layout, tx)
    for folder in left:
        log.info("removing a folder that was never finished: %s", folder.name)
        shutil.rmtree(folder, ignore_errors=True)
    layout.open.mkdir(mode=0o700, exist_ok=True)
    for mark in marks or ():
        (layout.open / mark).unlink(missing_ok=True)


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


def _mend_repo(gitdir: Path, tx: Transaction) -> bool:
    """False where the database does not know it: it was never finished."""
    row = tx.row(
        "SELECT default_branch FROM repos WHERE id = :id AND status <> 'importing'",
        {"id": gitdir.name.removesuffix(".git")},
    )
    if row is None:
        return False
    for quarantine in (gitdir / "objects").glob("tmp_objdir-*"):
        shutil.rmtree(quarantine, ignore_errors=True)
    _remove_stale_locks(gitdir)
    if mend_gitdir(gitdir, row["default_branch"]):
        log.warning("mended %s", gitdir)
    return True


def _remove_stale_locks(gitdir: Path) -> None:
    """A killed git leaves ``.lock`` files; with the data folder locked, nobody holds them."""
    for lock in (gitdir / "packed-refs.lock", gitdir / "HEAD.lock", gitdir / "config.lock"):
        lock.unlink(missing_ok=True)
    for lock in (gitdir / "refs").rglob("*.lock"):
        lock.unlink(missing_ok=True)
