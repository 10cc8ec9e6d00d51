"""What others may do in a state root that was made before us."""

from __future__ import annotations

import stat
from pathlib import Path

from artifactfs.daemon.host.privacy import keep_private
from artifactfs.paths import StateLayout
from tests.e2e.processes import DaemonProcess


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_open_state_root_is_closed(idle_daemon: DaemonProcess, small_repository: Path) -> None:
    idle_daemon.state.mkdir()
    idle_daemon.state.chmod(0o755)
    idle_daemon.start()
    mount = idle_daemon.add_repo("small", small_repository.as_uri())
    (mount / "README.md").read_bytes()
    for path in (idle_daemon.state, *idle_daemon.state.iterdir()):
        assert mode(path) & 0o077 == 0, path


def test_one_that_holds_other_things_stays_but_ours_are_closed(tmp_path: Path) -> None:
    state = StateLayout(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "theirs").mkdir(mode=0o755)
    (tmp_path / "cache").mkdir(mode=0o755)
    (tmp_path / "registry.db").touch(mode=0o644)
    (tmp_path / "daemon.log").symlink_to("/etc/passwd")
    passwd = mode(Path("/etc/passwd"))
    keep_private(state)
    assert mode(tmp_path) == mode(tmp_path / "theirs") == 0o755
    assert [mode(tmp_path / name) for name in ("cache", "repos", "registry.db")] == [
        0o700,
        0o700,
        0o600,
    ]
    assert mode(Path("/etc/passwd")) == passwd
