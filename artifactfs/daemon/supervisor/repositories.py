"""The repositories of a running daemon: what the registry wants, and what is mounted of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.host import logs
from artifactfs.daemon.repositories.registration import resolve_mount_point
from artifactfs.daemon.repositories.registry import Registration, Registry, not_registered
from artifactfs.daemon.supervisor.keeper import KeptMount
from artifactfs.daemon.supervisor.supervision import Supervision
from artifactfs.daemon.supervisor.workers import WorkerPool
from artifactfs.errors import ArtifactFSError, NotRegistered
from artifactfs.paths import StateLayout

log = logging.getLogger(__name__)


class Repositories:
    """Owns the registry's desired state and one `Supervision` for each mounted repository."""

    def __init__(
        self,
        state: StateLayout,
        mount_root: Path,
        pool: WorkerPool,
        log_level: str,
        *,
        cache_limit: int | None,
        keep_cpus_awake: bool,
        hydration_concurrency: int | None = None,
    ) -> None:
        """`cache_limit` is in bytes, None for the default. Mounts begin after `use`."""
        self.state = state
        self.mount_root = mount_root
        self.pool = pool
        self.mounts: dict[str, Supervision] = {}
        self.adding: set[str] = set()
        self._log_level = log_level
        self._cache_limit = cache_limit
        self._keep_cpus_awake = keep_cpus_awake
        self._hydration_concurrency = hydration_concurrency
        self._nursery: trio.Nursery | None = None

    def configure(self, log_level: str, cache_limit: int | None) -> None:
        """For this process and for mounts from now on. Raises: InvalidInput."""
        logs.set_level(log_level)
        self._log_level = log_level
        self._cache_limit = cache_limit
        for supervision in self.mounts.values():
            supervision.configure(log_level, cache_limit)

    def use(self, nursery: trio.Nursery) -> None:
        """Supervisions run in `nursery` from now on."""
        self._nursery = nursery

    async def registrations(self) -> list[Registration]:
        return await trio.to_thread.run_sync(self._read_all)

    def _read_all(self) -> list[Registration]:
        with Registry(self.state.registry_db) as registry:
            return registry.all()

    async def registration(self, name: str, *, whole: bool = True) -> Registration:
        """Raises: NotRegistered; if it has to be `whole`, StateError where its row is damaged."""
        for registration in await self.registrations():
            if registration.name == name:
                if whole and registration.damaged is not None:
                    raise registration.damaged
                return registration
        raise not_registered(name)

    async def save(self, settings: RepoSettings) -> None:
        """Store changed settings; the running mount's own are the caller's business."""

        def update() -> None:
            with Registry(self.state.registry_db) as registry:
                registry.update(settings)

        await trio.to_thread.run_sync(update)

    async def note_mounted(self, name: str) -> None:
        """See `Registry`. Where it is being added, it is not registered yet, and noted by `add`.
        What cannot be written down is said; the mount is there all the same."""

        def note() -> None:
            with Registry(self.state.registry_db) as registry:
                registry.note_mounted(name)

        try:
            await trio.to_thread.run_sync(note)
        except NotRegistered:
            pass
        except ArtifactFSError as error:
            log.warning("that it was mounted is not noted: %s", error, extra={"repo": name})

    async def set_enabled(self, name: str, enabled: bool) -> None:
        def update() -> None:
            with Registry(self.state.registry_db) as registry:
                registry.set_enabled(name, enabled)

        await trio.to_thread.run_sync(update)

    def resolved(self, settings: RepoSettings) -> RepoSettings:
        """With an absolute mount point."""
        return replace(settings, mount_point=resolve_mount_point(settings, self.mount_root))

    def supervise(
        self,
        settings: RepoSettings,
        *,
        behind_an_entrance: bool = True,
        was_mounted: bool = False,
        follows: bool = False,
        mount: KeptMount | None = None,
    ) -> Supervision:
        """Start keeping a repository mounted. `behind_an_entrance`: also while it is cloned.
        `was_mounted`: at any time before, so its files are there. `follows`: a daemon may have been
        before us, and has left `mount`, with its worker."""
        assert self._nursery is not None
        supervision = Supervision(
            self.resolved(settings),
            state=self.state,
            pool=self.pool,
            log_level=self._log_level,
            cache_limit=self._cache_limit,
            keep_cpus_awake=self._keep_cpus_awake,
            hydration_concurrency=self._hydration_concurrency,
            behind_an_entrance=behind_an_entrance,
            was_mounted=was_mounted,
            note_mounted=partial(self.note_mounted, settings.name),
        )
        if follows:
            supervision.follow(mount)
        self.mounts[settings.name] = supervision
        self._nursery.start_soon(supervision.run)
        return supervision

    def count(self) -> tuple[int, int]:
        """How many repositories are mounted, and how many are to be."""
        mounted = sum(supervision.state == "mounted" for supervision in self.mounts.values())
        return mounted, len(self.mounts)
