"""A clone in a state root of its own, and git in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from artifactfs.config import RepoSettings
from artifactfs.git.remote.clone import Tip, clone_tip, fetch_history, tip_wish
from artifactfs.git.remote.opening import open_remote
from artifactfs.git.remote.remote import Remote
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.paths import RepoLayout, StateLayout
from tests.git.sample_repository import git

T = TypeVar("T")


@dataclass
class Clone:
    """A state root with one repository in it."""

    state: StateLayout
    layout: RepoLayout
    settings: RepoSettings

    @property
    def gitdir(self) -> Path:
        return self.layout.gitdir

    def set(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)

    def run(self, body: Callable[[Remote], Awaitable[T]]) -> T:
        @asynccontextmanager
        async def opened() -> Any:
            remote = await open_remote(
                self.settings.remote,
                CredentialFile(self.layout.credentials),
                deadline_s=20,
                expect_refs=True,
                expect_tip=None if self.gitdir.exists() else tip_wish(self.settings),
                mirror=self.layout.directory / "mirror.git",
            )
            try:
                yield remote
            finally:
                await remote.aclose()

        async def main() -> T:
            async with opened() as remote:
                return await body(remote)

        return trio.run(main)

    async def tip(self, remote: Remote) -> Tip:
        return await clone_tip(
            self.layout, self.settings, remote, shared_objects=self.state.shared_objects
        )

    async def history(self, remote: Remote) -> None:
        await fetch_history(self.layout, self.settings, remote)

    async def both(self, remote: Remote) -> Tip:
        tip = await self.tip(remote)
        await self.history(remote)
        return tip

    def git(self, *arguments: str, **env: str) -> str:
        """Git in the clone, with an empty index."""
        worktree = self.settings.mount_point
        command = [f"--git-dir={self.gitdir}", f"--work-tree={worktree}", *arguments]
        return git(*command, cwd=Path(worktree), **env)

    def git_offline(self, *arguments: str) -> str:
        """The same, failing where it would fetch something."""
        return self.git(*arguments, GIT_ALLOW_PROTOCOL="none")


def make_clone(directory: Path, remote: str) -> Clone:
    """What is to be cloned from `remote`, below `directory`; nothing is there yet."""
    state = StateLayout(directory / "state root")
    mount = directory / "mount"
    mount.mkdir()
    layout = state.repo("r")
    layout.directory.mkdir(parents=True)
    settings = RepoSettings(name="r", remote=remote, mount_point=str(mount))
    return Clone(state, layout, settings)
