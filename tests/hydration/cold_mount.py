"""A mount's hydration without the mount: a real clone, a real remote, and a `Hydrator`."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.remote.clone import Tip, clone_tip
from artifactfs.git.remote.opening import open_remote
from artifactfs.git.remote.remote import Remote
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.hydration.hydrator import Hydrator, ReadContext
from artifactfs.hydration.stats import HydrationStats
from artifactfs.paths import RepoLayout, StateLayout


@dataclass
class ColdMount:
    """One clone without contents; `hydrator` runs."""

    state: StateLayout
    layout: RepoLayout
    odb: ObjectDatabase
    tip: Tip
    hydrator: Hydrator

    def context(self, path: bytes, pid: int = 1) -> ReadContext:
        """What the file system would say of a reader of `path`."""
        trees = [self.tip.tree]
        for part in path.split(b"/")[:-1]:
            entries = self.odb.tree(trees[0])
            trees.insert(0, next(entry.oid for entry in entries if entry.name == part))
        return ReadContext(path, tuple(trees), pid)

    def oid(self, path: bytes) -> bytes:
        name = path.rpartition(b"/")[2]
        entries = self.odb.tree(self.context(path).trees[0])
        return next(entry.oid for entry in entries if entry.name == name)

    async def read(self, path: bytes, pid: int = 1) -> bytes:
        """What a program reads that opens `path`."""
        oid = self.oid(path)
        blob = await self.hydrator.open(oid, self.context(path, pid))
        try:
            return blob.read(0, blob.size)
        finally:
            blob.close()

    async def landed(self) -> None:
        """Wait until no request of this mount is on the wire, and every pack is in place."""
        while flights := list(self.hydrator.parts.control.active):
            await flights[0].landed.wait()

    async def until(self, condition: Callable[[HydrationStats], bool]) -> None:
        """Wait until the statistics say so; there is nothing else to wait for in them."""
        with trio.fail_after(60):
            while not condition(self.hydrator.stats()):  # noqa: ASYNC110
                await trio.sleep(0.01)

    def files(self, tree: bytes | None = None, prefix: bytes = b"") -> list[bytes]:
        """Every file, in the order of a recursive scan."""
        found = []
        for entry in self.odb.tree(tree or self.tip.tree):
            if stat.S_ISDIR(entry.mode):
                found += self.files(entry.oid, prefix + entry.name + b"/")
            else:
                found.append(prefix + entry.name)
        return found


@asynccontextmanager
async def cold_mount(
    url: str,
    root: Path,
    *,
    name: str = "r",
    clone_url: str | None = None,
    cache_limit: int | None = None,
    object_info: bool = True,
    **changes: Any,
) -> AsyncIterator[ColdMount]:
    """Clone `url` into the state root `root` and run a hydrator until the block ends."""
    values: dict[str, Any] = {"hydrate": "none", "deadline_s": 60.0} | changes
    settings = RepoSettings(name=name, remote=url, mount_point=str(root / "mnt" / name), **values)
    Path(settings.mount_point).mkdir(parents=True)  # noqa: ASYNC240
    state = StateLayout(root)
    layout = state.repo(name)

    async def connect() -> Remote:
        remote = await open_remote(
            url,
            CredentialFile(layout.credentials),
            deadline_s=settings.deadline_s,
            mirror=layout.directory / "mirror",
        )
        if not object_info:  # git 2.39 has no setting that turns it off
            capabilities = replace(remote.capabilities, object_info=False, limits=("no sizes",))
            remote.capabilities = capabilities
        return remote

    if not layout.gitdir.exists():
        layout.directory.mkdir(parents=True, exist_ok=True)
        credentials = CredentialFile(layout.credentials)
        mirror = layout.directory / "mirror"
        remote = await open_remote(clone_url or url, credentials, deadline_s=60, mirror=mirror)
        tip = await clone_tip(layout, settings, remote, shared_objects=state.shared_objects)
        await remote.aclose()
    else:
        raise AssertionError("one mount for each name")
    odb = ObjectDatabase(layout.gitdir)
    limits = {} if cache_limit is None else {"cache_limit": cache_limit}
    hydrator = Hydrator(
        state=state, repo=layout, settings=settings, odb=odb, connect=connect, **limits
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hydrator.run)
        yield ColdMount(state, layout, odb, tip, hydrator)
        nursery.cancel_scope.cancel()
