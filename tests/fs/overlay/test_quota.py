"""The state root's quota is used up (EDQUOT), on btrfs, where that also befalls mapped files."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.btrfs import limited_folder
from tests.fs.expectations import wait_for
from tests.fs.mounting import Mount

pytestmark = pytest.mark.long

QUOTA_MIB = 20


@pytest.fixture
def limited(new_mount: Callable[..., Mount], tmp_path: Path) -> Iterator[Mount]:
    """A mount whose state is in a subvolume that may hold 20 MiB."""
    mount = new_mount()
    with limited_folder(tmp_path, QUOTA_MIB) as folder:
        mount.layout = folder
        try:
            yield mount.start()
        finally:
            mount.kill()


def fill(folder: Path, size: int) -> dict[Path, bytes]:
    """Write files until the quota ends it; what was acknowledged."""
    folder.mkdir()
    written: dict[Path, bytes] = {}
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        while True:
            path = folder / f"{len(written)}"
            written[path] = b""
            with path.open("wb", buffering=0) as file:
                for _ in range(0, size, 20_000):
                    piece = b"%07d" % len(written) * 2_000
                    written[path] += piece[: file.write(piece)]
    return written


@pytest.mark.parametrize("size", [14_000, 2_000_000])
def test_a_used_up_quota(limited: Mount, size: int) -> None:
    folder = limited.path / "folder"
    written = fill(folder, size)
    assert sum(map(len, written.values())) > (QUOTA_MIB - 4) << 20
    assert all(path.read_bytes() == content for path, content in written.items())
    limited.restart(kill=True)
    assert all(path.read_bytes() == content for path, content in written.items())
    shutil.rmtree(folder)
    wait_for(lambda: _disk_usage(limited) < 3 << 20)
    (limited.path / "after").write_bytes(b"there is room again")
    limited.restart(kill=True)
    assert (limited.path / "after").read_bytes() == b"there is room again"
    assert not folder.exists()


def test_serving_goes_on_where_the_quota_stays_used_up(limited: Mount) -> None:
    written = fill(limited.path / "folder", 14_000)
    deadline = time.monotonic() + 8
    refused = 0
    while time.monotonic() < deadline:
        for path, content in written.items():
            assert path.read_bytes() == content
        try:
            (limited.path / f"more-{refused}").write_bytes(b"x" * 200_000)
        except OSError as error:
            assert error.errno in (errno.EDQUOT, errno.ENOSPC)
            refused += 1
    assert refused > 0
    assert "Traceback" not in limited.stderr()


def _disk_usage(mount: Mount) -> int:
    return sum(path.stat().st_blocks * 512 for path in mount.layout.rglob("*"))
