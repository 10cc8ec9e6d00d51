"""Moving what was written between the two kinds of writes, and out of an upper folder."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.kernel_mount import snapshot, status
from tests.e2e.processes import PROGRAMS, DaemonProcess, ServedRepository, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")

CHANGES = """
echo new > new; touch -d 2001-02-03 new; echo more >> README.md; chmod 750 LICENSE
mkdir -p deep/a; echo d > deep/a/b; ln deep/a/b hard; ln -s target link-of-mine; mkfifo pipe
mv src moved; mkdir src; echo again > src/file; rm -r many; mkdir many; echo one > many/one
mv moved/package1 deep/; rm moved/package0/module0.py; mv Makefile Makefile.old
chown -h 1234:1234 link-of-mine; chown 1234 hard; chmod 700 deep; head -c 300000 /dev/zero > big
"""


@pytest.fixture(params=["kernel", "fuse"])
def changed(
    request: pytest.FixtureRequest,
    daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
) -> Iterator[tuple[Path, str, str]]:
    """A mount with all kinds of changes, its kind of writes, and the other one."""
    mount = daemon.add_repo("odd", remote_repo().url, "--xattrs", "--writes", request.param)
    daemon.wait_for("odd", "index")
    subprocess.run(["sh", "-ec", CHANGES], cwd=mount, check=True)
    os.setxattr(mount / "new", "user.note", b"kept")
    yield mount, request.param, "fuse" if request.param == "kernel" else "kernel"


def test_moving_what_was_written_loses_nothing(
    changed: tuple[Path, str, str], daemon: DaemonProcess
) -> None:
    mount, mine, other = changed
    before, said = snapshot(mount), status(mount)
    for kind in (other, mine, other):
        daemon.run("remount", "--name", "odd", "--writes", kind)
        assert daemon.status("odd")["writes"]["kind"] == kind
        assert snapshot(mount) == before
        assert status(mount) == said
        assert os.getxattr(mount / "new", "user.note") == b"kept"


def access_list(uid: int) -> bytes:
    """That `uid` may read, as acl(5) is kept: tag, permissions, id."""
    nobody = 0xFFFFFFFF
    entries = ((1, 6, nobody), (2, 4, uid), (4, 4, nobody), (0x10, 4, nobody), (0x20, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_attributes_that_our_mount_does_not_show(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    mount = daemon.add_repo("odd", remote_repo().url, "--writes", "kernel")
    (mount / "new").write_text("new\n")
    (mount / "src" / "folder").mkdir()
    kept = {"trusted.note": b"kept", "system.posix_acl_access": access_list(1234)}
    for path in (mount / "new", mount / "src" / "folder"):
        for name, value in kept.items():
            os.setxattr(path, name, value)
    modes = [path.stat().st_mode for path in (mount / "new", mount / "src" / "folder")]
    daemon.run("remount", "--name", "odd", "--writes", "fuse")
    assert (mount / "new").read_text() == "new\n"
    daemon.run("remount", "--name", "odd", "--writes", "kernel")
    for path in (mount / "new", mount / "src" / "folder"):
        assert {name: os.getxattr(path, name) for name in kept} == kept
    assert modes == [path.stat().st_mode for path in (mount / "new", mount / "src" / "folder")]


def test_moving_is_cut(changed: tuple[Path, str, str], daemon: DaemonProcess) -> None:
    """Killed at some moments of the move; at the end it is done, and nothing is lost."""
    mount, mine, other = changed
    before, said = snapshot(mount), status(mount)
    for number, kind in enumerate((other, mine, other, mine)):
        command = ("remount", "--name", "odd", "--writes", kind)
        moving = subprocess.Popen(
            [PROGRAMS / "artifact-fs", *command],
            env=daemon.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(3):
            pid = wait_until(lambda: daemon.status("odd")["pid"], "a worker")
            signal_after(pid, 0.05 + 0.1 * number)
        moving.wait(180)
        wait_until(lambda: daemon.status("odd")["state"] == "mounted", "the mount")
        assert daemon.status("odd")["writes"]["kind"] == kind
        assert snapshot(mount) == before
        assert status(mount) == said


def signal_after(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_rescue(kernel: Path, daemon: DaemonProcess, tmp_path: Path) -> None:
    """Everything that differs, with nothing mounted and no daemon."""
    daemon.run("prefetch", "--name", "odd", "src", "LICENSE", "Makefile")
    subprocess.run(["sh", "-ec", CHANGES], cwd=kernel, check=True)
    os.setxattr(kernel / "new", "user.note", b"kept")
    everything = snapshot(kernel)
    differing = {
        change["path"]: change["kind"] for change in daemon.json("diff-overlay", "--name", "odd")
    }
    daemon.stop()
    target = tmp_path / "rescued"
    said = daemon.run("rescue", str(daemon.state / "repos/odd/native/upper"), str(target)).stdout
    brought = snapshot(target)
    for path, kind in differing.items():
        if kind != "deleted":
            assert _without_links(brought[path.rstrip("/")]) == _without_links(
                everything[path.rstrip("/")]
            ), path
    removed = {path for path, kind in differing.items() if kind == "deleted"}
    assert {line[2:] for line in said.splitlines() if line.startswith("D ")} == removed
    assert os.getxattr(target / "new", "user.note") == b"kept"
    assert os.path.samefile(target / "hard", target / "deep/a/b")


def _without_links(seen: tuple[object, ...]) -> tuple[object, ...]:
    """Times of what was not written are those of the commit in the mount alone."""
    return (*seen[:3], seen[5])


def test_rescue_names_what_is_not_here(kernel: Path, daemon: DaemonProcess, tmp_path: Path) -> None:
    (kernel / "src" / "package0").rename(kernel / "package0")
    (kernel / "new").write_text("new\n")
    daemon.stop()
    upper = daemon.state / "repos/odd/native/upper"
    done = daemon.run("rescue", str(upper), str(tmp_path / "out"), check=False)
    assert done.returncode == 1
    assert "files is not here: package0/" in done.stderr
    assert (tmp_path / "out" / "new").read_text() == "new\n"
    again = daemon.run("rescue", str(upper), str(tmp_path / "out"), check=False)
    assert "is not empty" in again.stderr
