"""A state root that is moved while no daemon runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from tests.e2e.processes import DaemonProcess, ServedRepository


def test_a_moved_state_root_works_as_before(
    idle_daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    idle_daemon.start()
    mount = idle_daemon.add_repo("odd", remote_repo().url)
    idle_daemon.wait_for("odd", "history")
    (mount / "new").write_text("kept")
    idle_daemon.stop()
    moved = idle_daemon.state.with_name("moved")
    idle_daemon.state.rename(moved)
    idle_daemon.state = moved
    idle_daemon.start()

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", mount, *arguments], capture_output=True, text=True)

    assert (mount / "new").read_text() == "kept"
    looked = git("status", "--porcelain")
    assert (looked.stdout, looked.stderr) == ("?? new\n", "")
    # Git has the credentials, and nobody else's file.
    assert git("ls-remote", "origin").returncode == 0
    found = idle_daemon.json("doctor")["findings"]
    assert [one["code"] for one in found if one["severity"] in ("problem", "warning")] == []
