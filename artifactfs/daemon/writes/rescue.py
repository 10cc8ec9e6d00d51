"""Brings everything out of an upper folder, without a mount and without a daemon.

A copy of the folder is not enough: of what was only moved or got another mode the data is still in
the base tree (the upper file reads as NULs), of a moved folder everything that was not written
since, and whiteouts are devices. The base tree is that of the gitdir beside, as far as it is here.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from artifactfs.daemon.writes import record
from artifactfs.errors import AlreadyExists, CorruptData, InvalidInput, StateError
from artifactfs.fs.inodes.inode import mode_of_entry
from artifactfs.fs.native.view import File, Folder, View
from artifactfs.fs.native.writes import hidden_names
from artifactfs.fs.overlay.database import read_base
from artifactfs.git.objects.database import ObjectDatabase, Oid, TreeEntry
from artifactfs.paths import RepoLayout

_PIECE = 1 << 20
_OVERLAY_PREFIX = "trusted.overlay."


@dataclass(slots=True)
class Rescued:
    """How many files were brought out, which names were `removed` from the base tree, which files
    are `absent` because their data is not here, and which attributes could not be kept."""

    files: int = 0
    removed: list[bytes] = field(default_factory=list)
    absent: list[bytes] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)


def rescue(upper: Path, target: Path, repository: Path | None = None) -> Rescued:
    """Write to the folder `target` every file of `upper` that differs from the base tree.

    `repository` is ``STATE/repos/NAME``, by default the one that holds `upper`. Blocks. Raises:
    InvalidInput, AlreadyExists, StateError, OSError.
    """
    layout = RepoLayout((repository or upper.absolute().parent.parent).absolute())
    if not upper.is_dir():
        raise InvalidInput(f"{upper} is not a folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AlreadyExists(f"{target} is not empty", hint="give a folder that is not there yet")
    commit = _base_of(layout)
    odb = ObjectDatabase(layout.gitdir)
    tree = odb.commit(commit).tree
    hidden = hidden_names({entry.name for entry in odb.tree(tree)})
    view = View(os.fsencode(upper.absolute()), odb.tree, tree, hidden)
    target.mkdir(parents=True, exist_ok=True)
    rescuer = _Rescuer(view, odb)
    rescuer.folder(view.top, os.fsencode(target), moved=False)
    found = rescuer.found
    found.removed = [change.path for change in view.changes() if change.kind == "deleted"]
    return found


def _base_of(layout: RepoLayout) -> Oid:
    """Raises: InvalidInput, StateError."""
    try:
        if record.is_moving(layout):
            fields = json.loads((layout.native / record.NAME).read_text())
            return bytes.fromhex(fields["base_commit"])
        if not layout.overlay_db.exists():
            raise InvalidInput(
                f"{layout.directory} is no repository of a state root",
                hint="--repository STATE/repos/NAME says which one the folder belongs to",
            )
        commit = read_base(layout.overlay_db)[1]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{layout.native / record.NAME} is damaged: {error}") from error
    if commit is None:
        raise StateError(f"{layout.overlay_db} names no commit")
    return commit


class _Rescuer:
    def __init__(self, view: View, odb: ObjectDatabase) -> None:
        self._view = view
        self._odb = odb
        self._links: dict[tuple[int, int], bytes] = {}
        self.found = Rescued()

    def folder(self, folder: Folder, target: bytes, *, moved: bool) -> None:
        """`moved`: what is in it is nowhere else in the tree, so all of it counts."""
        for name, node in sorted(self._view.children(folder).items()):
            path = target + b"/" + name
            if isinstance(node, Folder):
                elsewhere = moved or _is_elsewhere(folder, node, name)
                if node.upper is None and not elsewhere:
                    continue
                os.mkdir(path)
                self.folder(node, path, moved=elsewhere)
                if node.upper is not None:
                    self._dress(node.upper, path)
            elif node.upper is not None or moved:
                self._file(node, path)

    def _file(self, file: File, path: bytes) -> None:
        found = file.status()
        if file.entry is not None:
            if not self._blob(file.entry, path):
                self.found.absent.append(file.path)
                return
        else:
            assert file.upper is not None and found is not None
            linked = self._links.get((found.st_dev, found.st_ino))
            if linked is not None:
                os.link(linked, path)
                self.found.files += 1
                return
            self._copy(file.upper, found, path)
            if found.st_nlink > 1:
                self._links[found.st_dev, found.st_ino] = path
        self.found.files += 1
        if file.upper is not None:
            self._dress(file.upper, path)

    def _blob(self, entry: TreeEntry, path: bytes) -> bool:
        """As git has it: without what attributes convert. False where it is not here."""
        content = self._odb.blob(entry.oid)
        if content is None:
            return False
        mode = mode_of_entry(entry.mode)
        if stat.S_ISLNK(mode):
            os.symlink(content, path)
            return True
        with open(path, "xb") as file:
            file.write(content)
        os.chmod(path, stat.S_IMODE(mode))
        return True

    def _copy(self, upper: bytes, found: os.stat_result, path: bytes) -> None:
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(upper), path)
        elif kind != stat.S_IFREG:
            os.mknod(path, found.st_mode, found.st_rdev)
        else:
            with open(upper, "rb") as source, open(path, "xb") as copy:
                while piece := source.read(_PIECE):
                    copy.write(piece)

    def _dress(self, upper: bytes, path: bytes) -> None:
        """Owner, mode, attributes, times."""
        found = os.lstat(upper)
        os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(path, stat.S_IMODE(found.st_mode))
        for name in os.listxattr(upper, follow_symlinks=False):
            if name.startswith(_OVERLAY_PREFIX):
                continue
            value = os.getxattr(upper, name, follow_symlinks=False)
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError:
                self.found.attributes.append(f"{os.fsdecode(path)}: {name}")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _is_elsewhere(parent: Folder, folder: Folder, name: bytes) -> bool:
    """Whether the folder shows what the base tree has at another place."""
    return folder.lower is not None and folder.lower != parent.lower_of(name)
