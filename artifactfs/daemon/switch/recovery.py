"""Finishes a switch that a crash has cut, before the mount is there again.

The overlay's transaction is the point of no return: where it was committed, index and HEAD follow
here; where it was not, nothing had changed.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from artifactfs.daemon.switch.head import Intent, Move, move_head
from artifactfs.errors import ArtifactFSError
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.tree.switch import note_stale
from artifactfs.git.index.file import StatData
from artifactfs.git.index.move import IndexMove
from artifactfs.git.index.primed import LockedIndex
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from artifactfs.git.repository.refs import read_head
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)


async def recover(layout: RepoLayout, odb: ObjectDatabase, filesystem: FileSystem) -> None:
    """Finish what was begun, before there is a mount. Failures are logged only.

    Where git has moved HEAD or the index meanwhile, they are left as they are, and `git status`
    tells how the working tree differs.
    """
    intent = Intent.of(layout)
    if not intent.path.exists():
        return
    move = intent.read()
    intent.remove_lock(layout.gitdir)
    try:
        if move is not None and filesystem.base.tree == move.goal.tree:
            await _finish(layout.gitdir, odb, filesystem, move)
    except (ArtifactFSError, MissingObject, OSError) as error:
        log.warning("an interrupted switch could not be finished: %s", error)
    except Exception as error:  # a record that is not what we wrote must not keep the mount away
        log.error("an interrupted switch could not be finished", exc_info=error)
    with suppress(OSError):  # a disk that is read-only: the next time, then
        intent.remove()


async def _finish(gitdir: Path, odb: ObjectDatabase, filesystem: FileSystem, move: Move) -> None:
    if read_head(gitdir) != move.head or move.head.commit is None:
        return
    old = odb.commit(move.head.commit).tree
    if filesystem.taken_over:
        note_stale(filesystem.walker, filesystem.stale, old, move.goal.tree)
    make = partial(IndexMove, gitdir, odb, old, move.goal.tree)
    plan = await trio.to_thread.run_sync(make)
    if not plan.is_done:
        with await trio.to_thread.run_sync(LockedIndex, gitdir) as lock:
            content = plan.finish(partial(_stat, filesystem), changed=None, token="")
            await trio.to_thread.run_sync(lock.commit, content)
    await move_head(gitdir, move)
    log.info("finished a switch to %s that was interrupted", move.goal.shown)


def _stat(filesystem: FileSystem, path: bytes) -> StatData:
    """What the mount is going to report of `path`."""
    found = filesystem.stat(path)
    if found is None:
        return StatData(0, 0, 0, 0, 0, 0)
    size = found.size or 0
    return StatData(found.ctime_ns, found.mtime_ns, found.ino, found.uid, found.gid, size)
