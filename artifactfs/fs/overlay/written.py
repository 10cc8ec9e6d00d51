"""One handle for the four parts of an overlay: rows, upper files, small files, and what is open.

What the kernel writes (``--writes kernel``) is elsewhere: see `fs/native/writes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifactfs.fs.overlay.database import Overlay
from artifactfs.fs.overlay.opened import Opened
from artifactfs.fs.overlay.smallfiles import SmallFiles
from artifactfs.fs.overlay.upper import Upper


@dataclass(frozen=True, slots=True)
class Written:
    """Rows and names in `overlay`; data in `upper` files or segments of `small` ones; and what of
    all that is `opened`. Whoever works on data takes this; whoever only finds inodes, the tree."""

    overlay: Overlay
    upper: Upper
    small: SmallFiles
    opened: Opened
