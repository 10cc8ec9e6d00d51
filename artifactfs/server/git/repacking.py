"""After pushes: the packs of a repository are put together before there are many of them."""

from __future__ import annotations

import logging
from functools import partial

import trio

from artifactfs.server.cluster.standing import Lost, Standing
from artifactfs.server.git.process import git_process
from artifactfs.server.storage.gitdir import git_environment
from artifactfs.server.storage.open_marks import OpenMarks
from artifactfs.server.storage.packs import (
    MANY_PACKS,
    REPLACED_S,
    Pack,
    count_packs,
    kept_for_readers,
    packs_to_roll_up,
    remove_packs,
    remove_replaced,
)
from artifactfs.server.storage.settings import DataLayout
from artifactfs.server.storage.sweeping import time_there

log = logging.getLogger(__name__)

_TIME_S = 600.0
_LOOK_S = 600.0


class Repacking:
    """Rolls up small packs, one repository at a time; others and other servers are not disturbed:
    whoever has a pack open goes on reading it."""

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
        self._refused: set[str] = set()

    async def look(self, repo_id: str) -> None:
        """After a push: have the packs put together if they are many, and do not wait for it."""
        if repo_id in self._wanted or repo_id in self._refused:
            return
        objects = self._layout.gitdir(repo_id) / "objects"
        if await trio.to_thread.run_sync(count_packs, objects) >= MANY_PACKS:
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

    async def _supervise(self, repo_id: str) -> None:
        try:
            async with self._one:
                self._wanted.discard(repo_id)  # what is pushed from here on may need another look
                await self._repack(repo_id)
        except Lost:
            log.info("packs of %s are not put together: the database is away", repo_id)
        except OSError as error:
            log.warning("packs of %s are not put together: %s", repo_id, error)
        except trio.TooSlowError:
            self._refuse(repo_id, f"not done after {_TIME_S:.0f} s")
        finally:
            self._wanted.discard(repo_id)

    def _refuse(self, repo_id: str, reason: str) -> None:
        """It would be the same after each push: `gc` will say what is wrong."""
        self._refused.add(repo_id)
        log.warning("packs of %s are not put together until the next start: %s", repo_id, reason)

    async def _repack(self, repo_id: str) -> None:
        """Raises: Lost, OSError, trio.TooSlowError."""
        objects = self._layout.gitdir(repo_id) / "objects"
        async with self._standing.only_one(f"repack {repo_id}"):
            packs = await trio.to_thread.run_sync(packs_to_roll_up, objects)
            if not packs:
                return
            with self._standing.working():
                async with self._marks.open(repo_id):
                    made = await self._pack(repo_id, packs)
                    if made is not None:
                        old = [pack for pack in packs if pack.name != made]
                        await trio.to_thread.run_sync(partial(self._replace, repo_id, old))

    def _replace(self, repo_id: str, old: list[Pack]) -> None:
        objects = self._layout.gitdir(repo_id) / "objects"
        if not self._standing.shared:  # a removed file can be read by whoever has it open
            remove_packs(objects, old)
            return
        with kept_for_readers(objects, self._layout.trash, old):
            remove_packs(objects, old)

    async def _pack(self, repo_id: str, packs: list[Pack]) -> str | None:
        """Write all objects of `packs` to one more pack; its name, None if git refused.

        Raises: OSError, trio.TooSlowError.
        """
        gitdir = self._layout.gitdir(repo_id)
        with trio.fail_after(_TIME_S):
            async with git_process(
                [
                    *[self._git, f"--git-dir={gitdir}", "pack-objects", "--stdin-packs"],
                    *["--delta-base-offset", "--non-empty", "-q"],
                    str(gitdir / "objects" / "pack" / "pack"),
                ],
                environment=git_environment(self._layout.git_config),
            ) as git:
                await git.stdin.send_all("".join(f"{p.name}.pack\n" for p in packs).encode())
                await git.stdin.aclose()
                output = bytearray()
                while data := await git.read():
                    output += data
                status = await git.wait()
        name = f"pack-{output.decode().strip()}"
        if status == 0 and (gitdir / "objects" / "pack" / f"{name}.idx").exists():
            return name
        if gitdir.exists():  # it was not deleted
            self._refuse(repo_id, git.stderr or f"git pack-objects ended with {status}")
        return None
