"""Serving a tree of another user (`--uid`) as root, so that this user's git works in it.

``STATE/repos/NAME`` becomes that user's, with a cache of its own: the shared one holds blobs of
every repository. The way there is opened for that user alone, by an entry of the access control
list (acl(5)) that lets it pass and see nothing; where the disk has none, by the mode 0711.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path

from artifactfs.config import RepoSettings
from artifactfs.git.identity import Identity, act_on_files_as
from artifactfs.paths import StateLayout

_ACL = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_NOBODY = 0xFFFFFFFF
_PASS = 1


def serve_as_other_user(state: StateLayout, settings: RepoSettings) -> StateLayout:
    """Hand the repository over to its user, and act as that user from now on; the layout to use.

    Nothing happens where that is the daemon's user. Raises: OSError.
    """
    if os.geteuid() != 0 or settings.uid in (None, 0):
        return state
    assert settings.uid is not None
    identity = Identity(settings.uid, os.getgid() if settings.gid is None else settings.gid)
    directory = state.repo(settings.name).directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    hand_over(directory, identity)
    for folder in (state.root, state.repos):
        let_pass(folder, identity.uid)
    act_on_files_as(identity)
    cache = directory / "cache"
    cache.mkdir(mode=0o700, exist_ok=True)
    return replace(state, own_cache=cache)


def hand_over(directory: Path, identity: Identity) -> None:
    """Everything in `directory` becomes the user's. Where it is already, only what lies directly
    in it is looked at. Follows no symlink, and leaves files with other names alone: they may have
    been put there. Raises: OSError."""
    is_new = directory.stat().st_uid != identity.uid
    for _, folders, files, fd in os.fwalk(directory):
        for name in (*folders, *files):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if found.st_uid == 0 and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                os.chown(name, identity.uid, identity.gid, dir_fd=fd, follow_symlinks=False)
        if not is_new:
            break
    os.chown(directory, identity.uid, identity.gid)


def let_pass(folder: Path, uid: int) -> None:
    """Let the user go through `folder`, and nobody else. Raises: OSError."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o001:
        return
    entries = _entries(folder) or {
        (_USER_OBJ, _NOBODY): mode >> 6,
        (_GROUP_OBJ, _NOBODY): mode >> 3 & 7,
        (_OTHER, _NOBODY): mode & 7,
    }
    entries[_USER, uid] = entries.get((_USER, uid), 0) | _PASS
    entries[_MASK, _NOBODY] = entries.get((_MASK, _NOBODY), mode >> 3 & 7) | _PASS
    packed = [_ENTRY.pack(tag, rights, who) for (tag, who), rights in sorted(entries.items())]
    try:
        os.setxattr(folder, _ACL, _VERSION + b"".join(packed))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
            raise
        folder.chmod(mode | 0o011)


def _entries(folder: Path) -> dict[tuple[int, int], int]:
    """(tag, user or group) → rights, of the list of `folder`; empty where it has none."""
    try:
        content = os.getxattr(folder, _ACL)
    except OSError:
        return {}
    found = _ENTRY.iter_unpack(content[len(_VERSION) :])
    return {(tag, who): rights for tag, rights, who in found}
