"""The kernel's overlayfs keeps the size that it was told of a file, until it is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.fs.mounting import Mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")


def test_no_file_is_taken_for_empty(new_mount: Callable[..., Mount]) -> None:
    """Else `copy_file_range` says that there is nothing to copy."""
    mount = new_mount()
    mount.native = True
    mount.start(sizes_known=False)
    for name in ("big", "src/f1.c", "docs/a.txt"):
        with open(mount.path / name, "rb") as source, open(mount.path / "copy", "wb") as target:
            with pytest.raises(OSError) as refused:
                os.copy_file_range(source.fileno(), target.fileno(), 1 << 20)
            assert refused.value.errno == errno.EXDEV  # programs read and write then
    assert os.listdir(mount.path / "many")
    assert (mount.path / "many/007").stat().st_size == 2
    assert (mount.path / "many/008").read_bytes() == b"8\n"
    assert (mount.path / "empty").read_bytes() == b""
    assert (mount.path / "empty").stat().st_size == 0
