"""Putting the small promisor packs of a gitdir together."""

from __future__ import annotations

import os
from pathlib import Path

from artifactfs.git.pack.store import PackStore
from artifactfs.git.repository.packs import consolidate_gitdir
from tests.git.pack.test_packstore import blob_pack, gitdir, store
from tests.git.pack_samples import ingest

__all__ = ["gitdir", "store"]  # fixtures


def test_a_damaged_pack_of_a_gitdir_is_left_out_and_stays(store: PackStore, gitdir: Path) -> None:
    for content in (b"one", b"other"):
        ingest(store, blob_pack(content))
    path = store.objects_dir / "pack" / f"{ingest(store, blob_pack(os.urandom(500))).name}.pack"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:100] + b"!!" + content[102:])
    assert consolidate_gitdir(gitdir) == (3, 2)
    assert path.exists() and path.with_suffix(".idx").exists()  # for `git fsck`
