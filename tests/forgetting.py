"""Has the kernel forget what it knows of one mount.

`/proc/sys/vm/drop_caches` is for the whole machine: tests that run beside would meet a kernel that
knows nothing any more of what they have just looked at.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_REMOUNT = 32
_KEPT_FLAGS = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC


def kernel_forgets(*mounts: Path) -> None:
    """Names, attributes and pages of what nobody holds open, the upper mount first where one is
    above the other. The FORGETs come some time after. (A remount lets go of the names of its file
    system, `reconfigure_super` in the kernel's fs/super.c, and FUSE's inodes go with their names.)
    """
    for mount in mounts:
        flags = os.statvfs(mount).f_flag & _KEPT_FLAGS
        if _LIBC.mount(None, os.fsencode(mount), None, _MS_REMOUNT | flags, None) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(mount))
