"""Work on a whole state root: eviction without a daemon, and ``gc``.

Synchronous; safe beside running mounts, as the stores of packs and large blobs have their own
locks between processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from typing import Any

from artifactfs.daemon.registration import MARKER, is_being_added
from artifactfs.daemon.registry import Registry
from artifactfs.errors import StateError
from artifactfs.git.packstore import PackStore
from artifactfs.hydration.large_blobs import LargeBlobStore
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


def collect_garbage(state: StateLayout, *, adding: Collection[str]) -> dict[str, Any]:
    """Consolidate the shared packs and remove leftovers. `adding` are names that are being added.

    Raises: StateError (no space, say).
    """
    store, large = PackStore(state.shared_objects), LargeBlobStore(state.large_blobs)
    try:
        before = len(store.packs())
        store.consolidate(everything=True)
        store.clean()
        large.remove_stale()
        removed = _remove_leftovers(state, adding)
        after = len(store.packs())
    except OSError as error:
        raise StateError(f"gc: {error.strerror or error}") from error
    return {
        "packs_before": before,
        "packs_after": after,
        "cache_bytes": store.total_bytes() + large.total_bytes(),
        "removed": removed,
    }


def _remove_leftovers(state: StateLayout, adding: Collection[str]) -> list[str]:
    """Directories of repositories whose adding or removal was cut short by a crash."""
    if not state.repos.is_dir():
        return []
    with Registry(state.registry_db) as registry:
        known = {registration.name for registration in registry.all()}
    removed = []
    for directory in sorted(state.repos.iterdir()):
        unfinished = (directory / MARKER).exists() and not is_being_added(directory)
        if unfinished and directory.name not in known and directory.name not in adding:
            shutil.rmtree(directory)
            removed.append(f"repos/{directory.name}")
    return removed
