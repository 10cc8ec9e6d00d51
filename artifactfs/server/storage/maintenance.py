"""Looking after a data folder: garbage collection and checks. Safe while a server runs on it.

Synchronous: these are commands of an administrator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from artifactfs.server.metadata.catalog import update_repo
from artifactfs.server.metadata.database import Database, Row, Transaction
from artifactfs.server.storage.gitdir import (
    find_git,
    git_environment,
    own_bytes,
    tree_bytes,
    write_alternates,
)
from artifactfs.server.storage.open_marks import marked
from artifactfs.server.storage.packs import kept_for_readers, repacking_lock
from artifactfs.server.storage.settings import DataLayout
from artifactfs.system.locks import locked

MANY_POOLS = 8
"""A repository that borrows from more pools than this gets copies of its own."""
GRACE_S = 3_600
"""What nobody claims any more is kept this long: a clone may still be reading it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a repository or pool."""

    what: str
    problem: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What gc did with a repository or pool. `before` and `after` are bytes."""

    what: str
    before: int
    after: int
    error: str | None = None

    def as_dict(self) -> dict[str, str | int | None]:
        return asdict(self)

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.what}: {self.error}"
        removed = self.what.startswith("pool ")
        done = "removed" if removed else f"{self.before} -> {self.after} bytes"
        return f"{self.what}: {done}"


def _has_nothing(gitdir: Path) -> bool:
    """Whether there is neither an object nor a ref: of thousands most were never pushed to."""
    objects = [*(gitdir / "objects").iterdir()]
    if {path.name for path in objects} != {"info", "pack"} or any(objects[0].parent.glob("*/*")):
        return False
    return not (gitdir / "packed-refs").exists() and not any(
        path.is_file() for path in (gitdir / "refs").rglob("*")
    )


class Caretaker:
    """Runs git over the repositories of a data folder."""

    def __init__(self, layout: DataLayout, db: Database, marks: Path | None = None) -> None:
        """`marks`: the folder of marks, if it is not that of the server."""
        self._layout = layout
        self._marks = marks or layout.open
        self._db = db
        self._shared = db.engine != "sqlite"
        self._git = find_git()
        self._environment = git_environment(layout.git_config)

    def repos(self) -> list[Row]:
        """All repositories that are ready."""
        return self._rows("SELECT * FROM repos WHERE status = 'ready' ORDER BY namespace, name")

    def _rows(self, sql: str, **params: str) -> list[Row]:
        return self._db.read(lambda tx: tx.rows(sql, params))

    def _run(self, gitdir: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._git, f"--git-dir={gitdir}", *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def _pools(self, repo_id: str) -> list[str]:
        rows = self._rows(
            "SELECT pool_id FROM repo_pools JOIN pools ON pools.id = pool_id"
            " WHERE repo_id = :repo ORDER BY pools.created_at, pools.id",
            repo=repo_id,
        )
        return [row["pool_id"] for row in rows]

    def fsck(self, *, full: bool = False) -> Iterator[Finding]:
        """Check every repository, and that disk and database agree."""
        for row in self.repos():
            name = f"{row['namespace']}/{row['name']}"
            gitdir = self._layout.gitdir(row["id"])
            if not (gitdir / "HEAD").exists():
                yield Finding(name, f"its folder {gitdir} is missing")
                continue
            if _has_nothing(gitdir):
                continue
            words = ["--full"] if full else ["--connectivity-only"]
            done = self._run(gitdir, "fsck", "--no-dangling", "--no-progress", *words)
            if done.returncode != 0:
                text = (done.stderr or done.stdout).strip().splitlines()
                yield Finding(name, text[0] if text else f"git fsck ended with {done.returncode}")
        for row in self._rows("SELECT id FROM pools"):
            if not (self._layout.pool(row["id"]) / "objects").is_dir():
                yield Finding(f"pool {row['id']}", "its folder is missing")

    def gc(self, *, grace_s: int = GRACE_S) -> Iterator[Collected]:
        """Repack every repository and remove pools that nobody claims."""
        for row in self.repos():
            gitdir = self._layout.gitdir(row["id"])
            if not gitdir.exists():
                continue
            before = own_bytes(gitdir)
            pools = self._pools(row["id"])
            lock = repacking_lock(gitdir)
            with marked(self._marks, row["id"]), locked(lock), self._for_readers(gitdir):
                error = self._repack(gitdir, borrowing=bool(pools))
                if error is None and len(pools) > MANY_POOLS:
                    error = self._stand_alone(row["id"], gitdir, pools)
            after = own_bytes(gitdir)
            columns = {"own_bytes": after, "updated_at": row["updated_at"]}
            self._db.write(partial(update_repo, repo_id=row["id"], **columns))
            name = f"{row['namespace']}/{row['name']}"
            yield Collected(name, before, after, error)
        yield from self._remove_pools(grace_s)

    def _for_readers(self, gitdir: Path) -> AbstractContextManager[None]:
        """Other machines may be reading what is replaced; on this one git keeps it open."""
        if not self._shared:
            return nullcontext()
        return kept_for_readers(gitdir / "objects", self._layout.trash)

    def _repack(self, gitdir: Path, *, borrowing: bool) -> str | None:
        # A bitmap needs every object in one pack; it halves the time of a clone.
        bitmaps = "false" if borrowing else "true"
        done = self._run(
            gitdir,
            *["-c", f"repack.writeBitmaps={bitmaps}"],
            *["gc", "--quiet", "--cruft", "--prune=2.weeks.ago"],
        )
        return None if done.returncode == 0 else done.stderr.strip() or "git gc failed"

    def _stand_alone(self, repo_id: str, gitdir: Path, pools: list[str]) -> str | None:
        """Copy what a repository borrows, and let go of its pools."""
        done = self._run(gitdir, "repack", "-a", "-d", "-q")
        if done.returncode != 0:
            return done.stderr.strip()
        write_alternates(gitdir, ())
        if self._run(gitdir, "fsck", "--connectivity-only", "--no-dangling").returncode != 0:
            write_alternates(gitdir, tuple(self._layout.pool(pool) for pool in pools))
            return "still needs its pools"
        self._db.write(
            lambda tx: tx.run("DELETE FROM repo_pools WHERE repo_id = :repo", {"repo": repo_id})
        )
        for pool in pools:
            self._touch(pool)
        return None

    def _touch(self, pool: str) -> None:
        """Let the grace of a pool begin."""
        directory = self._layout.pool(pool)
        if directory.exists():
            os.utime(directory)

    def _remove_pools(self, grace_s: int) -> Iterator[Collected]:
        known = {row["id"] for row in self._rows("SELECT id FROM pools")}
        claimed = {row["pool_id"] for row in self._rows("SELECT pool_id FROM repo_pools")}
        for directory in sorted(self._layout.pools.iterdir()):
            pool = directory.name
            try:
                age = time.time() - directory.stat().st_mtime
            except FileNotFoundError:
                continue
            if pool in claimed or age < grace_s:
                continue
            if pool in known and not self._release(pool):
                continue
            size = tree_bytes(directory)
            shutil.rmtree(directory, ignore_errors=True)
            yield Collected(f"pool {pool}", size, 0)

    def _release(self, pool: str) -> bool:
        """Take a pool out of the database, unless a fork claimed it meanwhile."""

        def release(tx: Transaction) -> int:
            return tx.run(
                "DELETE FROM pools WHERE id = :pool AND NOT EXISTS"
                " (SELECT 1 FROM repo_pools WHERE pool_id = pools.id)",
                {"pool": pool},
            )

        return self._db.write(release) > 0
