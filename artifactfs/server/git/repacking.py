"""After pushes: the packs of a repository are put together before there are many of them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import trio

from artifactfs.server.cluster.standing import Lost, Standing
from artifactfs.server.git.process import run_bounded
from artifactfs.server.storage.gitdir import git_environment
from artifactfs.server.storage.open_marks import OpenMarks
from artifactfs.server.storage.packs import (
    MANY_PACKS,
    REPLACED_S,
    Pack,
    kept_for_readers,
    oids_of,
    packs_to_roll_up,
    remove_packs,
    remove_replaced,
    repacking_lock,
    small_packs,
)
from artifactfs.server.storage.pools import sync_directory
from artifactfs.server.storage.settings import DataLayout
from artifactfs.server.storage.sweeping import time_there
from artifactfs.system.locks import open_lock_file, try_lock

log = logging.getLogger(__name__)

_TIME_S = 600.0
_LOOK_S = 600.0
_REFUSED_S = 3_600.0


class Repacking:
    """Rolls up small packs, one repository at a time. Whoever has a pack open goes on reading it,
    and git finds an object again whose pack was replaced."""

    def __init__(
        self,
        git: str,
        layout: DataLayout,
        standing: Standing,
        marks: OpenMarks,
        background: trio.Nursery,
    ) -> None:
        self._git = git
        self._layout = layout
        self._standing = standing
        self._marks = marks
        self._background = background
        self._one = trio.Lock()
        self._wanted: set[str] = set()
        self._refused: dict[str, float] = {}
        """Repositories that are left alone until then."""

    async def look(self, repo_id: str) -> None:
        """After a push: have the packs put together if they are many, and do not wait for it."""
        if repo_id in self._wanted or self._refused.get(repo_id, 0) > trio.current_time():
            return
        if len(await self._small_packs(repo_id)) >= MANY_PACKS and repo_id not in self._wanted:
            self._wanted.add(repo_id)
            self._background.start_soon(self._supervise, repo_id)

    async def run(self) -> None:
        """Remove what was replaced long ago, from time to time; until cancelled."""
        while True:
            try:
                await trio.to_thread.run_sync(self._remove_replaced)
            except OSError as error:
                log.warning("the trash cannot be looked through: %s", error.strerror)
            await trio.sleep(_LOOK_S)

    def _remove_replaced(self) -> None:
        trash = self._layout.trash
        remove_replaced(trash, older_than=time_there(trash) - REPLACED_S)

    async def _small_packs(self, repo_id: str) -> list[Pack]:
        objects = self._layout.gitdir(repo_id) / "objects"
        try:
            return await trio.to_thread.run_sync(small_packs, objects)
        except OSError as error:
            log.info("the packs of %s cannot be listed: %s", repo_id, error.strerror)
            return []

    async def _supervise(self, repo_id: str) -> None:
        try:
            async with self._one:
                self._wanted.discard(repo_id)  # what is pushed from here on may need another look
                with self._standing.working():
                    await self._repack(repo_id)
        except Lost:
            log.info("packs of %s are not put together: the database is away", repo_id)
        except OSError as error:
            log.warning("packs of %s are not put together: %s", repo_id, error)
        except (ValueError, trio.TooSlowError) as error:
            self._refuse(repo_id, str(error) or f"not done after {_TIME_S:.0f} s")
        except Exception:
            log.exception("the packs of %s", repo_id)
            self._refuse(repo_id, "internal error")

    def _refuse(self, repo_id: str, reason: str) -> None:
        """It would be the same after the next push; `fsck` says what is wrong."""
        self._refused[repo_id] = trio.current_time() + _REFUSED_S
        log.warning("packs of %s are not put together for an hour: %s", repo_id, reason)

    async def _repack(self, repo_id: str) -> None:
        """Does nothing where `gc` or another server is at it.

        Raises: Lost, OSError, ValueError, trio.TooSlowError.
        """
        lock = await trio.to_thread.run_sync(self._lock, repo_id)
        if lock is None:
            return
        try:
            packs = packs_to_roll_up(await self._small_packs(repo_id))
            if packs:
                async with self._marks.open(repo_id):
                    await self._roll_up(repo_id, packs)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(os.close, lock)

    def _lock(self, repo_id: str) -> int | None:
        """A descriptor that holds the lock; None: others have it, or there is no repository."""
        gitdir = self._layout.gitdir(repo_id)
        if not (gitdir / "HEAD").exists():
            return None
        lock = open_lock_file(repacking_lock(gitdir))
        if try_lock(lock):
            return lock
        os.close(lock)
        return None

    async def _roll_up(self, repo_id: str, packs: Sequence[Pack]) -> None:
        lines = await trio.to_thread.run_sync(self._lines, repo_id, packs)
        status, name, said = await self._pack(repo_id, lines)
        old = [pack for pack in packs if pack.name != name]
        replace = partial(self._replace, repo_id, name if status == 0 else None, old)
        if not await trio.to_thread.run_sync(replace):
            self._refuse(repo_id, said or f"git pack-objects ended with {status}")

    def _lines(self, repo_id: str, packs: Sequence[Pack]) -> bytes:
        objects = self._layout.gitdir(repo_id) / "objects"
        found = [oid for pack in packs for oid in oids_of(objects, pack)]
        return b"".join(oid.hex().encode() + b"\n" for oid in dict.fromkeys(found))

    def _replace(self, repo_id: str, made: str | None, old: list[Pack]) -> bool:
        """Remove what is in the pack `made` now; False where there is none. Raises: OSError."""
        gitdir = self._layout.gitdir(repo_id)
        objects = gitdir / "objects"
        if not (gitdir / "HEAD").exists():  # deleted meanwhile: git has made the folder again
            shutil.rmtree(gitdir, ignore_errors=True)
            return True
        if made is None or not (objects / "pack" / f"{made}.idx").exists():
            return False
        sync_directory(objects / "pack")
        shared = self._standing.shared
        with kept_for_readers(objects, self._layout.trash) if shared else nullcontext():
            remove_packs(objects, old)
        return True

    async def _pack(self, repo_id: str, lines: bytes) -> tuple[int, str, str]:
        """Write the objects named in `lines` to a pack: the exit status of git, the pack's name,
        what git said. Raises: OSError, trio.TooSlowError."""
        gitdir = self._layout.gitdir(repo_id)
        status, output, said = await run_bounded(
            [
                *[self._git, f"--git-dir={gitdir}", "pack-objects"],
                *["--delta-base-offset", "--non-empty", "-q"],
                str(gitdir / "objects" / "pack" / "pack"),
            ],
            environment=git_environment(self._layout.git_config),
            deadline_s=_TIME_S,
            stdin=lines,
        )
        return status, f"pack-{output.decode().strip()}", said
