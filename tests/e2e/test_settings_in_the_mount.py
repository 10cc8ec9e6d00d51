"""What leads the daemon into its own mount: settings, a remote, programs. It does not follow.

The fixture `daemon` checks, here as everywhere, that no process of its own has looked there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactfs.paths import leads_into
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import DaemonProcess


@pytest.fixture
def led_astray(idle_daemon: DaemonProcess, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon whose user keeps git's files, and programs, in a working tree that it mounts."""
    mount = idle_daemon.mounts / "odd"
    (tmp_path / "link").symlink_to(mount)
    config = tmp_path / "config"
    config.write_text(
        f"[core]\n\tattributesFile = {mount}/src/attributes\n"
        f"\texcludesFile = {tmp_path}/link/src/ignore\n"
    )
    path = f"{mount}/bin:{tmp_path}/link:{os.environ['PATH']}"
    idle_daemon.extra_environment |= {"GIT_CONFIG_GLOBAL": str(config), "PATH": path}
    idle_daemon.start()
    yield idle_daemon


def test_settings_and_programs_in_the_mount(
    led_astray: DaemonProcess, odd_repository: OddRepository
) -> None:
    mount = led_astray.add_repo("odd", str(odd_repository.path))
    led_astray.wait_for("odd", "history")
    assert (mount / "README.md").read_bytes() == odd_repository.files[b"README.md"]
    status = ["git", "-C", str(mount), "status", "--porcelain"]
    assert subprocess.run(status, capture_output=True, check=True, text=True).stdout == ""


def test_a_mount_is_not_its_own_remote(
    daemon: DaemonProcess, odd_repository: OddRepository
) -> None:
    mount = daemon.add_repo("odd", str(odd_repository.path))
    (daemon.directory / "link").symlink_to(mount)
    for path in (mount, mount / ".git", daemon.directory / "link"):
        refused = daemon.run("set-remote", "--name", "odd", "--remote", path, check=False)
        assert refused.returncode != 0
        assert "cannot be its own remote" in refused.stderr
    assert daemon.status("odd")["remote"] == str(odd_repository.path)
    daemon.run("fetch", "--name", "odd")


def test_what_leads_into_a_folder(tmp_path: Path) -> None:
    inside = tmp_path / "mnt"
    inside.mkdir()
    (tmp_path / "a").symlink_to("mnt/deep")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("mnt", "mnt/x", "a", "b/x", "x/../mnt/y"):
        assert leads_into(str(tmp_path / path), str(inside)), path
    for path in ("", "mntx", "x", "loop", "mnt/../x"):
        assert leads_into(str(tmp_path / path), str(inside)) is False, path
