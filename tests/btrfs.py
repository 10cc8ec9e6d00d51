"""A disk with a quota, for tests of what happens when it is used up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited_folder(directory: Path, mebibytes: int) -> Iterator[Path]:
    """A subvolume of a btrfs of its own, below `directory`, that may hold so much (EDQUOT)."""
    image, disk = directory / "image", directory / "disk"
    with image.open("wb") as file:
        file.truncate(600 << 20)
    disk.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    folder = disk / "limited"
    try:
        subprocess.run(["btrfs", "quota", "enable", disk], check=True)
        subprocess.run(["btrfs", "-q", "subvolume", "create", folder], check=True)
        subprocess.run(["btrfs", "qgroup", "limit", f"{mebibytes}M", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
