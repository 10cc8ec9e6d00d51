"""Work on a state root without a daemon: eviction, unmounting; and ``gc``.

Synchronous; safe beside running mounts, as the stores of packs and large blobs have their own
locks between processes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from artifactfs.daemon.host import overlayfs
from artifactfs.daemon.repositories.registration import (
    MARKER,
    forget_adding,
    is_being_added,
    resolve_mount_point,
)
from artifactfs.daemon.repositories.registry import Registration, Registry
from artifactfs.errors import StateError
from artifactfs.git.pack.store import ABANDONED_S, PackStore
from artifactfs.git.repository.packs import consolidate_gitdir
from artifactfs.hydration.local.large_blobs import LargeBlobStore
from artifactfs.paths import StateLayout


def evict_here(state: StateLayout, max_bytes: int) -> dict[str, Any]:
    """Shrink the cache where no mount runs that could do it. Raises: StateError."""
    store, large = PackStore(state.shared_objects), LargeBlobStore(state.large_blobs)
    try:
        before = store.total_bytes() + large.total_bytes()
        large.evict(max(before - max_bytes, 0))
        store.evict(max(max_bytes - large.total_bytes(), 0))
        after = store.total_bytes() + large.total_bytes()
    except OSError as error:
        raise StateError(f"cannot evict: {error.strerror or error}") from error
    return {"freed_bytes": before - after, "cache_bytes": after}


def unmount_here(state: StateLayout, name: str) -> None:
    """Where no daemon runs: the next one does not mount it, and its dead mount is cleared away.

    Raises: NotRegistered, MountError, StateError.
    """
    with Registry(state.registry_db) as registry:
        registry.set_enabled(name, False)
        settings = registry.get(name).settings
    mount_point = resolve_mount_point(settings, state.mount_root())
    overlayfs.clear_dead(mount_point, state.repo(name))


def collect_garbage(
    state: StateLayout, *, adding: Collection[str], only: str | None = None
) -> dict[str, Any]:
    """Consolidate the packs of the cache and of every gitdir of ours, and remove leftovers.

    `adding` are names that are being added; `only`: of gitdirs, that one's. Nothing may be removed
    (`remove-repo`) meanwhile. Raises: StateError (no space, say), CorruptData.
    """
    store, large = PackStore(state.shared_objects), LargeBlobStore(state.large_blobs)
    try:
        before = len(store.packs())
        store.consolidate(everything=True)
        store.clean()
        large.remove_stale()
        removed = _remove_leftovers(state, adding)
        after = len(store.packs())
        gitdirs = _consolidate_gitdirs(state, only)
    except OSError as error:
        raise StateError(f"gc: {error.strerror or error}") from error
    return {
        "packs_before": before,
        "packs_after": after,
        "gitdirs": gitdirs,
        "cache_bytes": store.total_bytes() + large.total_bytes(),
        "removed": removed,
    }


def _consolidate_gitdirs(state: StateLayout, only: str | None) -> dict[str, dict[str, int]]:
    """Packs before and after, by repository; never in a gitdir that other tools made."""
    counts = {}
    for registration in _registered(state):
        if only not in (None, registration.name):
            continue
        gitdir = state.repo(registration.name).gitdir
        if registration.settings.git_dir is None and gitdir.is_dir():
            before, after = consolidate_gitdir(gitdir)
            counts[registration.name] = {"packs_before": before, "packs_after": after}
    return counts


def _registered(state: StateLayout) -> list[Registration]:
    if not state.registry_db.exists():
        return []
    with Registry(state.registry_db) as registry:
        return registry.all()


def _remove_leftovers(state: StateLayout, adding: Collection[str]) -> list[str]:
    """What was cut short by a crash: adding, removing, cloning, storing credentials."""
    if not state.repos.is_dir():
        return []
    known = {registration.name for registration in _registered(state)}
    removed: list[str] = []
    for directory in sorted(state.repos.iterdir()):
        if directory.name in known:
            forget_adding(directory)
            removed += _remove_temporary(state, directory)
            continue
        unfinished = (directory / MARKER).exists() and not is_being_added(directory)
        if unfinished and directory.name not in adding:
            shutil.rmtree(directory)
            removed.append(f"repos/{directory.name}")
    return removed


def _remove_temporary(state: StateLayout, directory: Path) -> Iterator[str]:
    """Clones that never became the gitdir (there is one by now), files before their rename."""
    clones = directory.glob(".git.*") if (directory / "git").exists() else ()
    for path in (*clones, *directory.glob(".credentials.*")):
        if time.time() - path.stat().st_mtime < ABANDONED_S:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        yield str(path.relative_to(state.root))
