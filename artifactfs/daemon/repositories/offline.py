"""``add-repo`` without a daemon: clone and register here; the daemon mounts it at its start."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.prepared import adopt_gitdir
from artifactfs.daemon.repositories.registration import (
    Reservation,
    Secret,
    check_fuse,
    keep,
    once_more,
    registered,
    resolve_mount_point,
)
from artifactfs.daemon.repositories.registry import Registration, Registry
from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.git.configuration.kept import surroundings_of, write_settings
from artifactfs.git.remote.clone import clone_tip, tip_wish
from artifactfs.git.surroundings import adopt
from artifactfs.paths import StateLayout

Report = Callable[[dict[str, Any]], None]


def register_here(
    state: StateLayout,
    settings: RepoSettings,
    secret: dict[str, Any] | None,
    report: Report,
    *,
    again: bool,
    clone: bool,
) -> dict[str, Any]:
    """Phase 1 of the clone, then the registry; nothing is left behind if that fails.

    `again`: take over the options of what is registered already. Without `clone` it is queued for
    the daemon. Raises: ArtifactFSError.
    """
    known = registered(state, settings.name) if again else None
    if known is not None:
        return _again(state, known, settings, secret, report, clone=clone)
    if clone:
        check_fuse()
    mount_point = resolve_mount_point(settings, state.mount_root())
    with _Interruption() as interruption:
        reservation = Reservation(state, settings, Path(mount_point))
        try:
            reservation.store(Secret.from_fields(secret))
            if clone and not reservation.taken_over:
                report({"state": "cloning"})
                trio.run(_clone, state, replace(settings, mount_point=mount_point), interruption)
            interruption.check()
            reservation.commit()
        except BaseException:
            reservation.roll_back()
            raise
    word = "registered" if clone else "queued"
    return {"name": settings.name, "mount_point": mount_point, "state": word}


def _again(
    state: StateLayout,
    known: Registration,
    settings: RepoSettings,
    secret: dict[str, Any] | None,
    report: Report,
    *,
    clone: bool,
) -> dict[str, Any]:
    """What is registered already takes over the options. Raises: AlreadyExists."""
    settings = once_more(known.settings, settings)
    mount_point = resolve_mount_point(settings, state.mount_root())
    layout = state.repo(settings.name)
    keep(layout, Secret.from_fields(secret), settings.remote)
    with Registry(state.registry_db) as registry:
        registry.update(settings)
        registry.set_enabled(settings.name, True)
    if clone and not layout.gitdir.exists():
        report({"state": "cloning"})
        with _Interruption() as interruption:
            trio.run(_clone, state, replace(settings, mount_point=mount_point), interruption)
    word = "registered" if layout.gitdir.exists() else "queued"
    return {"name": settings.name, "mount_point": mount_point, "state": word, "again": True}


class _Interruption:
    """Ctrl-C or SIGTERM, noted where everything can be taken back; the second acts at once.

    As an exception it could come in the middle of anything, of trio's own work too.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._cancel: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: object) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        if self._cancel is not None:
            self._cancel()

    def check(self) -> None:
        """Raises: KeyboardInterrupt."""
        if self._signalled:
            raise KeyboardInterrupt

    @contextmanager
    def cancelling(self) -> Iterator[None]:
        """A block of a trio program that is cancelled when the signal comes. Raises as `check`."""
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            self._cancel = partial(token.run_sync_soon, scope.cancel)
            self.check()
            try:
                yield
            finally:
                self._cancel = None
        self.check()


async def _clone(state: StateLayout, settings: RepoSettings, interruption: _Interruption) -> None:
    with interruption.cancelling():
        await _clone_or_adopt(state, settings)


async def _clone_or_adopt(state: StateLayout, settings: RepoSettings) -> None:
    layout = state.repo(settings.name)
    adopt(await surroundings_of(layout, settings))
    await trio.to_thread.run_sync(write_settings, layout, settings.uid)
    if settings.git_dir is not None:
        await adopt_gitdir(layout, settings, shared_objects=state.shared_objects)
        return
    connection = RemoteConnection(layout, settings.remote, settings.deadline_s)
    try:
        remote = await connection.open_for_clone(tip_wish(settings))
        await clone_tip(layout, settings, remote, shared_objects=state.shared_objects)
    finally:
        await connection.aclose()
