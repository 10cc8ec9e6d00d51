"""Trees that were read once are not read again, as far as there is room."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from artifactfs.fs.inodes import listings
from artifactfs.fs.inodes.listings import Listings
from artifactfs.git.objects.database import ObjectDatabase


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three directories of four files, and the root."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for number in range(12):
        path = tmp_path / f"d{number % 3}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n")
    subprocess.run(["git", "-C", tmp_path, "add", "-A"], check=True)
    tree = subprocess.run(["git", "-C", tmp_path, "write-tree"], check=True, capture_output=True)
    (tmp_path / ".git" / "tree").write_bytes(tree.stdout)
    return tmp_path / ".git"


def test_who_walks_leaves_what_others_list(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "KEPT_ENTRIES", 9)
    kept = Listings(ObjectDatabase(repository))
    root = bytes.fromhex((repository / "tree").read_text())
    entries = kept.read(root)
    assert [entry.name for entry in entries] == [b"d0", b"d1", b"d2"]
    assert kept.known(root) == entries
    first, second, third = (entry.oid for entry in entries)
    assert [entry.name for entry in kept.read(first)] == [b"file0", b"file3", b"file6", b"file9"]
    assert list(kept.entries(first)) == [b"file0", b"file3", b"file6", b"file9"]
    # There is no room for four more: they are told, and nothing that is kept goes.
    assert [entry.name for entry in kept.read(second)] == [b"file1", b"file10", b"file4", b"file7"]
    assert kept.known(second) is None and kept.known(first) is not None
    # Who lists a directory has it kept, and what was not used for longest goes.
    assert list(kept.entries(third)) == [b"file11", b"file2", b"file5", b"file8"]
    assert kept.known(third) is not None and kept.known(root) is None
