"""How overlayfs marks what an upper folder says of the tree below (kernel: filesystems/overlayfs).

A name that was removed is a character device 0:0 (a whiteout). Extended attributes say the rest:
``opaque`` of a folder, nothing below shows through; ``redirect`` of a folder or a file, it was
moved here from another path; ``metacopy`` of a file, its data is still below and what is in the
upper file are NULs.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

OPAQUE = "trusted.overlay.opaque"
REDIRECT = "trusted.overlay.redirect"
METACOPY = "trusted.overlay.metacopy"
OWN_PREFIX = "trusted.overlay."

MOUNT_OPTIONS = "redirect_dir=on,metacopy=on,xino=off,index=off,nfs_export=off"
"""With `redirect_dir` and `metacopy` a move or a chmod copies nothing; without `xino` the inode
numbers of what is unchanged are the lower mount's, which git's index knows; without `index` an
upper folder can be mounted again while a program still has the dead mount open."""


@dataclass(frozen=True, slots=True)
class Marks:
    """`redirect` is as it is stored: a name in the same folder, or a path from the top."""

    opaque: bool = False
    redirect: bytes | None = None
    metacopy: bool = False


_NONE = Marks()


def marks_of(path: bytes) -> Marks:
    """The marks of a folder or a file in an upper folder. Blocks. Raises: OSError."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return _NONE
        raise
    if not any(name.startswith(OWN_PREFIX) for name in names):
        return _NONE

    def value(name: str) -> bytes | None:
        return os.getxattr(path, name, follow_symlinks=False) if name in names else None

    return Marks(value(OPAQUE) == b"y", value(REDIRECT), METACOPY in names)


def is_whiteout(found: os.stat_result) -> bool:
    """Whether what was found stands for a name that was removed."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def redirected(lower_folder: bytes | None, redirect: bytes) -> bytes | None:
    """The path below, from the top, that `redirect` leads to from within `lower_folder`."""
    if redirect.startswith(b"/"):
        return redirect.strip(b"/")
    if lower_folder is None:
        return None
    return lower_folder + b"/" + redirect if lower_folder else redirect
