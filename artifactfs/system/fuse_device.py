"""``/dev/fuse``, and how an ordinary user gets to open it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

FUSE_DEVICE = Path("/dev/fuse")


def let_in() -> str:
    """What root runs so that our user may open it, also after the next start: narrower than a mode
    of 0666."""
    rule = 'KERNEL=="fuse", GROUP="fuse", MODE="0660"'
    return (
        f"as root: groupadd -f fuse && usermod -aG fuse {_user()} && chgrp fuse {FUSE_DEVICE} &&"
        f" chmod 0660 {FUSE_DEVICE} && echo '{rule}' >/etc/udev/rules.d/60-fuse.rules;"
        " then log in anew"
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
