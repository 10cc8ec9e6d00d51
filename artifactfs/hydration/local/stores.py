"""Where contents and sizes are kept outside of packs, opened and closed together."""

from __future__ import annotations

from dataclasses import dataclass

from artifactfs.damage import DamageReport
from artifactfs.hydration.local.cache import MemoryCache
from artifactfs.hydration.local.large_blobs import LargeBlobStore
from artifactfs.hydration.local.sizes import SizeStore
from artifactfs.paths import StateLayout


@dataclass(frozen=True, slots=True)
class LocalStores:
    """The small blobs in memory, the large ones in files, and the sizes that were told."""

    memory: MemoryCache
    large: LargeBlobStore
    sizes: SizeStore

    @classmethod
    def open(cls, state: StateLayout, memory_bytes: int, damage: DamageReport) -> LocalStores:
        """Those of the state root, which workers share. Raises: OSError, sqlite3.Error."""
        return cls(
            MemoryCache(memory_bytes),
            LargeBlobStore(state.large_blobs, damage),
            SizeStore(state.sizes_db, damage),
        )
