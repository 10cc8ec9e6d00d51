"""Folders of the working tree that live on the local disk: ``node_modules``, ``.venv``, ``target``.

What is written below such a folder goes straight to ``STATE/repos/NAME/redirects/DATA`` and never
through FUSE. Where this process may mount, DATA is bind-mounted over the folder; elsewhere the
folder is a symlink to it. A symlink is an entry of the overlay and stays by itself; a bind mount
ends with the mount below it, so the worker calls `apply` after each mount and `release` before an
orderly unmount (a lazy one detaches what is mounted below as well).

The folders are listed in ``redirects/list.json``, and in the gitdir's ``info/exclude``: they are
for what git must not see, and a pattern such as ``node_modules/`` does not match a symlink.

Everything here is synchronous: call it in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from artifactfs.daemon.host import mounts
from artifactfs.daemon.host.binds import bind, unbind
from artifactfs.errors import (
    AlreadyExists,
    ArtifactFSError,
    CorruptData,
    InvalidInput,
    MountError,
    NotRegistered,
)
from artifactfs.git.identity import other_user_of
from artifactfs.paths import RepoLayout, real_path
from artifactfs.system.files import replace_file
from artifactfs.system.locks import locked
from artifactfs.system.processes import may_mount

log = logging.getLogger(__name__)

METHODS = ("bind", "symlink")
_libc = ctypes.CDLL(None, use_errno=True)
_EXCLUDE_MARK = "# artifact-fs redirect"


@dataclass(frozen=True, slots=True)
class Redirect:
    """`path` is relative to the mount point; `data` is a name below ``STATE/…/redirects``."""

    path: str
    method: str
    data: str


@dataclass(frozen=True, slots=True)
class Tree:
    """One mounted repository: where its redirections are kept, and where they take effect."""

    layout: RepoLayout
    mount_point: Path
    gitdir: Path

    def folder(self, redirect: Redirect) -> Path:
        return Path(real_path(str(self.mount_point))) / redirect.path

    def data(self, redirect: Redirect) -> Path:
        return self.layout.redirects / redirect.data


# -- the list --------------------------------------------------------------------------------


def redirects_of(layout: RepoLayout) -> list[Redirect]:
    """The redirections of a repository, by path. Raises: CorruptData."""
    file = layout.redirects / "list.json"
    try:
        return [_entry(fields) for fields in json.loads(file.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise CorruptData(
            f"{file} is damaged: {error}",
            hint="move it away and add the redirections again; their data is beside it",
        ) from error


def _entry(fields: dict[str, Any]) -> Redirect:
    """Raises: ValueError, TypeError."""
    checksum = fields.pop("checksum", None)  # earlier versions wrote none
    if checksum is not None and checksum != _checksum(fields):
        raise ValueError("an entry does not match its checksum")
    return Redirect(**fields)


def _checksum(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


@contextmanager
def _changing(layout: RepoLayout) -> Iterator[dict[str, Redirect]]:
    """The list for one change at a time; written as a whole, if the block succeeds."""
    layout.redirects.mkdir(mode=0o711, exist_ok=True)
    with locked(layout.redirects / "lock"):
        known = {redirect.path: redirect for redirect in redirects_of(layout)}
        yield known
        file = layout.redirects / "list.json"
        listed = [asdict(known[path]) for path in sorted(known)]
        entries = [{**fields, "checksum": _checksum(fields)} for fields in listed]
        replace_file(file, json.dumps(entries, indent=1), sync=True)


def check_path(text: str) -> str:
    """Return `text` as a path relative to the mount point. Raises: InvalidInput."""
    path = os.path.normpath(text)
    if os.path.isabs(path) or path in (".", "..") or path.startswith("../") or "\0" in path:
        raise InvalidInput(f"{text!r} is not a path inside the tree")
    if path.split("/")[0] == ".git":
        raise InvalidInput("git's own folder cannot be redirected")
    return path


# -- add and remove --------------------------------------------------------------------------


def add(tree: Tree, path: str, *, method: str | None = None, move: bool = False) -> Redirect:
    """Put the folder `path` on the local disk, from now on and after every mount.

    `move` takes along what is there already. Raises: InvalidInput for a folder with tracked files
    or (unless `move`) any files, AlreadyExists, MountError.
    """
    path = check_path(path)
    with _changing(tree.layout) as known:
        _check_free(known, path)
        _check_inside(tree, path)
        _check_untracked(tree, path)
        digest = blake2b(os.fsencode(path), digest_size=4).hexdigest()
        name = f"{os.path.basename(path)[:200]}-{digest}"
        redirect = Redirect(path, method or ("bind" if may_mount() else "symlink"), name)
        _prepare_data(tree, redirect, move)
        try:
            _place(tree, redirect)
        except MountError:
            _put_back(tree, redirect)
            raise
        known[path] = redirect
    _set_excluded(tree, path, True)
    return redirect


def _check_free(known: dict[str, Redirect], path: str) -> None:
    for other in known:
        inner, outer = Path(path), Path(other)
        if inner == outer or inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise AlreadyExists(
                f"{other} is redirected already",
                hint=f"artifact-fs redirect remove {other} undoes it",
            )


def _check_inside(tree: Tree, path: str) -> None:
    """Raises: InvalidInput where a symlink of the tree (whoever committed it) leads elsewhere."""
    top = os.path.realpath(tree.mount_point)
    parent = os.path.realpath(os.path.join(top, os.path.dirname(path)))
    if parent != top and not parent.startswith(f"{top}/"):
        raise InvalidInput(f"{path} leads out of the tree, to {parent}")


def _check_untracked(tree: Tree, path: str) -> None:
    user = other_user_of(tree.gitdir)
    git = ["git", f"--git-dir={tree.gitdir}", "-c", "core.fsmonitor=false"]
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--", f":(literal){path}"],
        cwd=tree.mount_point,
        capture_output=True,
        check=False,
        **(user.process_options() if user is not None else {}),
    )
    if listed.stdout:
        first = os.fsdecode(listed.stdout.split(b"\0")[0])
        raise InvalidInput(f"{path} holds tracked files ({first}): git must go on seeing them")


def _prepare_data(tree: Tree, redirect: Redirect, move: bool) -> None:
    folder, data = tree.folder(redirect), tree.data(redirect)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InvalidInput(f"{redirect.path} is not a folder")
    if data.exists() and any(data.iterdir()):
        raise AlreadyExists(f"{data} is left over and not empty", hint="move it away")
    holds = folder.is_dir() and any(folder.iterdir())
    if holds and not move:
        raise InvalidInput(
            f"{redirect.path} is not empty", hint="--move takes its files to the local disk"
        )
    data.mkdir(exist_ok=True)
    owner = tree.mount_point.stat()
    if os.geteuid() == 0:
        os.chown(data, owner.st_uid, owner.st_gid)
    data.chmod(0o755)
    if holds:
        try:
            copy_everything(folder, data)
        except (MountError, OSError):
            shutil.rmtree(data, ignore_errors=True)
            raise
        shutil.rmtree(folder)


def copy_everything(source: Path, target: Path) -> None:
    """Copy what is in the folder `source` into the folder `target`: owners, times, links and
    special files too. Returns when it is on the disk. Raises: MountError, OSError.
    """
    done = subprocess.run(
        ["cp", "--archive", "--", f"{source}/.", str(target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        first = next(iter(done.stderr.splitlines()), "cp failed")
        raise MountError(f"cannot copy {source}: {first.removeprefix('cp: ')}")
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(target))
        os.fsync(descriptor)  # in a mount of ours this is what writes everything
    finally:
        os.close(descriptor)


def _put_back(tree: Tree, redirect: Redirect) -> None:
    """After a folder could not be redirected: what `_prepare_data` took along is in it again."""
    data = tree.data(redirect)
    if any(data.iterdir()):
        folder = tree.folder(redirect)
        folder.mkdir(exist_ok=True)
        copy_everything(data, folder)
    shutil.rmtree(data)


def _place(tree: Tree, redirect: Redirect) -> None:
    """Make the folder lead to its data. Raises: MountError."""
    folder, data = tree.folder(redirect), tree.data(redirect)
    try:
        if redirect.method == "bind":
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.is_dir() and not folder.is_symlink():
                folder.rmdir()
            folder.symlink_to(data)
    except OSError as error:
        raise MountError(f"cannot make {folder}: {error.strerror}") from error
    if redirect.method == "bind":
        bind(data, folder)


def remove(tree: Tree, path: str, *, discard: bool = False, keep: bool = False) -> Redirect:
    """Undo `add`. What is in the folder is deleted (`discard`) or moved back (`keep`).

    Raises: NotRegistered, MountError; InvalidInput for a folder that is not empty with neither.
    """
    path = check_path(path)
    with _changing(tree.layout) as known:
        redirect = known.get(path)
        if redirect is None:
            raise NotRegistered(
                f"{path} is not redirected", hint="artifact-fs redirect list shows what is"
            )
        data = tree.data(redirect)
        holds = data.is_dir() and any(data.iterdir())
        if holds and not (discard or keep):
            raise InvalidInput(
                f"{path} is not empty",
                hint="--keep moves its files into the tree, --discard deletes them",
            )
        _displace(tree, redirect)
        if holds and keep:
            folder = tree.folder(redirect)
            folder.mkdir(exist_ok=True)
            copy_everything(data, folder)
        shutil.rmtree(data, ignore_errors=True)
        del known[path]
    _set_excluded(tree, path, False)
    return redirect


def _displace(tree: Tree, redirect: Redirect) -> None:
    folder = tree.folder(redirect)
    try:
        if redirect.method == "bind":
            unbind(folder)
            folder.rmdir()
        elif folder.is_symlink():
            folder.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise MountError(f"cannot clear {folder}: {error.strerror}") from error


def _set_excluded(tree: Tree, path: str, excluded: bool) -> None:
    """Keep git from looking: one marked line in ``info/exclude`` (gitignore(5))."""
    file = tree.gitdir / "info" / "exclude"
    lines = file.read_text().splitlines() if file.exists() else []
    escaped = "".join(f"\\{char}" if char in "*?[]\\ !#" else char for char in path)
    kept: list[str] = []
    for line in lines:
        if line == f"/{escaped}" and kept and kept[-1] == _EXCLUDE_MARK:
            kept.pop()
        else:
            kept.append(line)
    if excluded:
        kept += [_EXCLUDE_MARK, f"/{escaped}"]
    file.parent.mkdir(exist_ok=True)
    replace_file(file, "".join(f"{line}\n" for line in kept))


# -- what the worker calls -------------------------------------------------------------------


def active(tree: Tree, redirect: Redirect) -> bool:
    """Tell whether the folder leads to its data now."""
    folder = tree.folder(redirect)
    if redirect.method == "bind":
        return bool(mounts.mounts_at(str(folder), follow=False))
    return folder.is_symlink() and Path(os.readlink(folder)) == tree.data(redirect)


def _listed(tree: Tree) -> list[Redirect]:
    """None where the list cannot be read, which is logged: `doctor` names it, too."""
    try:
        return redirects_of(tree.layout)
    except (CorruptData, OSError) as error:
        log.warning("no folder is redirected: %s", error)
        return []


def prepare(
    tree: Tree, make_folder: Callable[[bytes], object], make_link: Callable[[bytes, str], object]
) -> list[Redirect]:
    """Make what leads to each redirected folder in the tree, which is not asked through its mount;
    returns those for which there is such a thing.

    One that cannot be made is logged and left out: the mount is worth having without it.
    """
    prepared = []
    for redirect in _listed(tree):
        data = tree.data(redirect)
        try:
            data.mkdir(exist_ok=True)
            if redirect.method == "bind":
                make_folder(os.fsencode(redirect.path))
            else:
                make_link(os.fsencode(redirect.path), str(data))
        except (OSError, LookupError) as error:
            log.warning("cannot redirect: %s", error, extra={"path": redirect.path})
        else:
            prepared.append(redirect)
    return prepared


def place(tree: Tree, prepared: Iterable[Redirect]) -> None:
    """Put the bind mounts that are not there over the folders that `prepare` has made.

    One that cannot be placed is logged and left out. Blocks until the mount answers mount(8), so
    call it in a thread.
    """
    for redirect in prepared:
        try:
            if redirect.method == "bind" and not active(tree, redirect):
                bind(tree.data(redirect), tree.folder(redirect))
        except (ArtifactFSError, OSError) as error:
            log.warning("cannot redirect: %s", error, extra={"path": redirect.path})


def release(tree: Tree) -> None:
    """End the bind mounts, so that the mount itself can be unmounted without force.

    Raises: MountError where one is in use; others may have ended by then.
    """
    for redirect in _listed(tree):
        if redirect.method == "bind":
            unbind(tree.folder(redirect))
