"""The base tree of a repository while what was written is moved from one place to the other.

``native/moving.json`` names it. While the file is there, the overlay of our own mount says nothing:
it is made anew from the base, empty, before anything uses it. So a move can be cut at any point:

* to the kernel, an upper folder is built beside, and appears as a whole with that file in it; then
  our overlay is emptied, and the file removed;
* to our mount, the file is written, our overlay is emptied and filled; then the upper folder goes
  away as a whole, with the file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from artifactfs.errors import StateError
from artifactfs.fs.gitview.journal import ChangeJournal
from artifactfs.fs.inodes.inode import Directory, Owner
from artifactfs.fs.overlay.database import create_overlay
from artifactfs.fs.overlay.pending import put_inode, put_meta
from artifactfs.inode_numbers import FIRST_ALLOCATED_INO, ROOT_INO
from artifactfs.paths import RepoLayout
from artifactfs.system.files import replace_file, sync_path

NAME = "moving.json"
_BYTES = ("base_commit", "base_tree", "ino_secret")


def is_moving(layout: RepoLayout) -> bool:
    return (layout.native / NAME).exists()


def write(folder: Path, meta: Mapping[str, Any]) -> None:
    """Note the base that the `meta` of an overlay names, in the folder ``native``. Raises:
    OSError."""
    fields: dict[str, object] = {key: meta[key].hex() for key in _BYTES if key in meta}
    fields["base_time_ns"] = int(meta["base_time_ns"])
    replace_file(folder / NAME, json.dumps(fields), sync=True)


def empty_overlay(layout: RepoLayout, owner: Owner) -> None:
    """Make our overlay anew, as it is when nothing was written to the noted base.

    Inode numbers and times of what is clean stay, which git's index knows. Raises: OSError,
    StateError.
    """
    file = layout.native / NAME
    try:
        fields = json.loads(file.read_text())
        meta = {key: bytes.fromhex(fields[key]) for key in _BYTES if key in fields}
        time_ns = int(fields["base_time_ns"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{file} is damaged: {error}", hint="restore it from a backup") from error
    for path in _overlay_files(layout):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    root = Directory(ROOT_INO, None, b"", 0o040755, meta["base_tree"])
    root.time_ns = time_ns
    edits = [
        put_inode(ROOT_INO, owner.row(root)),
        put_meta("base_time_ns", time_ns),
        put_meta("next_ino", FIRST_ALLOCATED_INO),
        put_meta("closed", ChangeJournal().dump()),
    ]
    edits += [put_meta(key, value) for key, value in meta.items()]
    create_overlay(layout.overlay_db, edits)


def finish_move_in(layout: RepoLayout, owner: Owner) -> None:
    """The upper folder is there as a whole: our overlay says nothing any more. Raises: OSError."""
    empty_overlay(layout, owner)
    (layout.native / NAME).unlink()
    sync_path(layout.native)


def remove_native(layout: RepoLayout) -> None:
    """What the upper folder held is elsewhere: it goes as a whole. Raises: OSError."""
    old = layout.native.with_name(".native.old")
    shutil.rmtree(old, ignore_errors=True)
    layout.kernel_writes.unlink(missing_ok=True)
    layout.native.rename(old)
    sync_path(layout.directory)
    shutil.rmtree(old)


def _overlay_files(layout: RepoLayout) -> Iterable[Path]:
    """The database goes first: without it nobody takes the rest for something."""
    name = layout.overlay_db.name
    databases = [layout.overlay_db] if layout.overlay_db.exists() else []
    others = (path for path in layout.directory.iterdir() if path.name.startswith(f"{name}-"))
    folders = (path for path in (layout.upper, layout.small) if path.exists())
    return [*databases, *others, *folders]
