"""Backups of a data folder while a server runs on it, and restoring them.

The database first, then each repository: its refs, then its objects. Packs are never changed once
they are there, so every object that the copied refs need is found, whatever is pushed meanwhile.
A second backup to the same place copies only packs that are new.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from artifactfs.errors import InvalidInput, StateError
from artifactfs.server.metadata.catalog import add_pool, claim_pool, remove_repo
from artifactfs.server.metadata.copying import EVENT_TABLES, METADATA_TABLES, copy_rows
from artifactfs.server.metadata.database import Database, Transaction
from artifactfs.server.metadata.migrations import (
    Migrations,
    event_migrations,
    metadata_migrations,
)
from artifactfs.server.metadata.records import Repo
from artifactfs.server.metadata.sqlite import SQLite
from artifactfs.server.storage.gitdir import (
    borrowed_pools,
    find_git,
    git_environment,
    tree_bytes,
    write_alternates,
)
from artifactfs.server.storage.pools import count_objects, own_object_files
from artifactfs.server.storage.settings import DataLayout

_COPY_TRIES = 5


def back_up(source: DataLayout, target: DataLayout, database: Database | None = None) -> int:
    """Copy a data folder; how many repositories are in the copy. `database`: where it is not in
    the folder. In the copy it always is.

    Raises: StateError; InvalidInput if one folder is within the other.
    """
    real, there = source.root.resolve(), target.root.resolve()
    if real.is_relative_to(there) or there.is_relative_to(real):
        raise InvalidInput("a backup must lie outside the data folder")
    try:
        target.prepare()
    except OSError as error:
        raise StateError(f"{target.root} cannot be used: {error.strerror}") from error
    if database is None and source.database_id.exists():
        raise StateError(f"the database of {source.root} is not in the folder")
    if database is not None:
        database.snapshot(lambda tx: _copy_to_files(tx, target))
    else:
        for name in ("metadata_db", "events_db"):
            _copy_database(getattr(source, name), getattr(target, name))
    shutil.copy2(source.git_config, target.git_config)
    db = SQLite(target.metadata_db, metadata_migrations)
    try:
        for row in db.read(lambda tx: tx.rows("SELECT id FROM pools")):
            _copy_pool(source.pool(row["id"]), target.pool(row["id"]))
        for repo in _ready_repos(db):
            pools = _copy_repo(source, target, repo.id)
            if pools is None:
                # Deleted since the database was copied.
                db.write(partial(remove_repo, repo=repo, tombstone=True))
            else:
                db.write(partial(_claim, target=target, repo=repo, pools=pools))
        kept = _ready_repos(db)
        _remove_strangers(target, db, {repo.id for repo in kept})
        return len(kept)
    finally:
        db.close()


def restore(source: DataLayout, target: DataLayout) -> int:
    """Make a data folder from a backup; how many repositories. Raises: InvalidInput."""
    if not source.metadata_db.exists():
        raise InvalidInput(f"{source.root} is not a backup")
    if target.metadata_db.exists():
        raise InvalidInput(
            f"{target.root} is in use already", hint="restore to a folder that is empty"
        )
    return back_up(source, target)


def _ready_repos(db: Database) -> list[Repo]:
    return [
        Repo.of(row)
        for row in db.read(
            lambda tx: tx.rows(
                "SELECT repos.*, account_id FROM repos JOIN namespaces"
                " ON namespaces.name = repos.namespace WHERE status = 'ready'"
            )
        )
    ]


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy by SQLite's backup interface, put in place whole."""
    if not source.exists():
        return
    building = target.with_suffix(".new")
    building.unlink(missing_ok=True)
    building.touch(mode=0o600)
    reading, writing = sqlite3.connect(source), sqlite3.connect(building)
    try:
        reading.backup(writing)
    finally:
        writing.close()
        reading.close()
    _put_in_place(building, target)


def _put_in_place(building: Path, target: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    building.replace(target)


def _copy_to_files(tx: Transaction, target: DataLayout) -> None:
    """A snapshot of PostgreSQL as the files that a data folder has, put in place whole."""
    kinds: tuple[tuple[Path, Migrations, tuple[str, ...]], ...] = (
        (target.metadata_db, metadata_migrations, METADATA_TABLES),
        (target.events_db, event_migrations, EVENT_TABLES),
    )
    for path, migrations, tables in kinds:
        building = path.with_suffix(".new")
        building.unlink(missing_ok=True)
        made = SQLite(building, migrations)
        try:
            made.write(partial(copy_rows, tx, tables=tables))
        finally:
            made.close()
        _put_in_place(building, path)


def _copy_pool(source: Path, target: Path) -> None:
    if source.is_dir() and not target.is_dir():
        building = target.with_name(f"{target.name}.new")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(source, building)
        building.rename(target)


def _copy_repo(source: DataLayout, target: DataLayout, repo_id: str) -> list[str] | None:
    """Copy one gitdir and what it borrows; the pools, None if it is gone. Raises: StateError.

    A fork moves objects into a new pool, and gc may take them back: what was borrowed at either
    end of the copy is borrowed in the copy.
    """
    gitdir, copy = source.gitdir(repo_id), target.gitdir(repo_id)
    for _ in range(_COPY_TRIES):
        if not (gitdir / "HEAD").exists():
            return None
        try:
            before = borrowed_pools(gitdir)
            refs = _packed_refs(gitdir, target.git_config)
            copy_objects(gitdir / "objects", copy / "objects")
            pools = list(dict.fromkeys([*before, *borrowed_pools(gitdir)]))
            for pool in pools:
                _copy_pool(source.pool(pool), target.pool(pool))
                if not target.pool(pool).is_dir():
                    raise FileNotFoundError(pool)
            _copy_rest(gitdir, copy, refs)
        except FileNotFoundError:
            continue  # a repack replaced packs, or the repository was deleted
        write_alternates(copy, tuple(target.pool(pool) for pool in pools))
        return pools
    raise StateError(f"{gitdir} keeps changing")


def _claim(tx: Transaction, target: DataLayout, repo: Repo, pools: list[str]) -> None:
    """Let the copied database know what a copied repository borrows."""
    for pool in pools:
        if tx.row("SELECT 1 AS one FROM pools WHERE id = :pool", {"pool": pool}) is None:
            size = tree_bytes(target.pool(pool))
            objects = count_objects(target.pool(pool) / "objects")
            add_pool(tx, pool, repo.account_id, size, objects)
        claim_pool(tx, repo.id, pool)


def _packed_refs(gitdir: Path, config: Path) -> str:
    done = subprocess.run(
        [find_git(), f"--git-dir={gitdir}", "for-each-ref", "--format=%(objectname) %(refname)"],
        env=git_environment(config),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise FileNotFoundError(gitdir)
    return "# pack-refs with: sorted \n" + done.stdout.decode("utf-8", "surrogateescape")


def copy_objects(source: Path, target: Path) -> None:
    names = set(own_object_files(source))
    for part in ("pack", "info"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for name in sorted(names, key=lambda name: name.endswith(".idx")):
        there = target / name
        if there.exists() and there.stat().st_size == (source / name).stat().st_size:
            continue
        there.parent.mkdir(exist_ok=True)
        building = there.with_name(f"{there.name}.new")
        shutil.copy2(source / name, building)
        building.replace(there)
    for name in set(own_object_files(target)) - names:
        (target / name).unlink(missing_ok=True)


def _copy_rest(source: Path, target: Path, refs: str) -> None:
    """Everything that is not an object. HEAD last: it makes the folder a repository."""
    shutil.rmtree(target / "refs", ignore_errors=True)
    for part in ("refs/heads", "refs/tags"):
        (target / part).mkdir(parents=True)
    (target / "packed-refs").write_text(refs, encoding="utf-8", errors="surrogateescape")
    (target / "shallow").unlink(missing_ok=True)
    if (source / "shallow").exists():
        shutil.copy2(source / "shallow", target / "shallow")
    for name in ("config", "HEAD"):
        shutil.copy2(source / name, target / name)


def _remove_strangers(target: DataLayout, db: Database, known: set[str]) -> None:
    """Remove what an earlier backup had and this one has not."""
    pools = {row["id"] for row in db.read(lambda tx: tx.rows("SELECT id FROM pools"))}
    for pool in target.pools.iterdir():
        if pool.name not in pools:
            shutil.rmtree(pool)
    for gitdir in _gitdirs(target):
        if gitdir.name.removesuffix(".git") not in known:
            shutil.rmtree(gitdir)


def _gitdirs(layout: DataLayout) -> Iterator[Path]:
    yield from layout.repos.glob("*/*.git")
