"""What holds whoever takes the writes: the kernel (`--writes kernel`) or our process."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.btrfs import limited_folder
from tests.e2e.comparison import tree
from tests.e2e.kernel_mount import status
from tests.e2e.mount_table import clear_mounts
from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until
from tests.e2e.test_crashes import has_ended
from tests.fs.mounting import git

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")

KINDS = ("kernel", "fuse")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def mount(daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], kind: str) -> Path:
    """The odd repository, with its history and index."""
    path = daemon.add_repo("odd", remote_repo().url, "--writes", kind)
    daemon.wait_for("odd", "history")
    daemon.wait_for("odd", "index")
    return path


def change(mount: Path) -> None:
    (mount / "README.md").write_text("changed\n")
    (mount / "Makefile").unlink()
    (mount / "LICENSE").chmod(0o755)
    (mount / "src").rename(mount / "moved")
    (mount / "new").write_text("new\n")


def wait_for_mount(daemon: DaemonProcess) -> None:
    wait_until(lambda: daemon.status("odd")["state"] == "mounted", "the mount")


def test_after_a_boot(mount: Path, daemon: DaemonProcess) -> None:
    """No process, no mount, and another boot than the one that the state root knows."""
    change(mount)
    before, said = tree(mount), status(mount)
    worker = daemon.worker(mount)
    os.kill(worker, signal.SIGKILL)
    daemon.kill()
    wait_until(partial(has_ended, worker), "the end")
    clear_mounts(daemon.directory)
    noted = daemon.state / "repos/odd/native/fsmonitor"
    if noted.exists():
        session, _, *rest = noted.read_bytes().split(b" ")
        noted.write_bytes(b" ".join([session, b"0" * 32, *rest]))
    daemon.start()
    wait_for_mount(daemon)
    assert tree(mount) == before
    assert status(mount) == said


def test_gc(mount: Path, daemon: DaemonProcess) -> None:
    change(mount)
    git("add", "-A", cwd=mount)
    git("commit", "-qm", "Changed", cwd=mount)
    (mount / "untracked").write_text("1")
    before = tree(mount)
    git("gc", "-q", "--prune=now", cwd=mount)
    daemon.run("gc")
    assert tree(mount) == before
    assert status(mount) == "?? untracked\n"
    daemon.run("remount", "--name", "odd", "--restart")
    assert tree(mount) == before
    assert status(mount) == "?? untracked\n"


def test_evict_cache(mount: Path, daemon: DaemonProcess) -> None:
    change(mount)
    before, said = tree(mount), status(mount)
    daemon.run("evict-cache")
    assert tree(mount) == before
    with (mount / "moved" / "hello.c").open("a") as file:
        file.write("more\n")
    assert status(mount) == said
    daemon.run("evict-cache")
    daemon.run("remount", "--name", "odd", "--restart")
    assert (mount / "moved" / "hello.c").read_text().endswith("more\n")


def test_settings_of_the_file(
    idle_daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    kind: str,
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[add-repo]\nwrites = "{kind}"\nhydrate = "none"\n')
    idle_daemon.extra_environment["ARTIFACT_FS_CONFIG"] = str(config)
    idle_daemon.start()
    idle_daemon.run("add-repo", "--name", "odd", "--remote", remote_repo().url)
    assert idle_daemon.status("odd")["writes"]["kind"] == kind


def test_the_kind_is_kept(mount: Path, daemon: DaemonProcess, kind: str) -> None:
    """Over restarts, and whatever `auto` would take now."""
    (mount / "new").write_text("new\n")
    daemon.run("remount", "--name", "odd", "--writes", "auto")
    daemon.stop()
    daemon.start()
    wait_for_mount(daemon)
    assert daemon.status("odd")["writes"] == {"kind": kind, "why": "what was written is there"}
    assert (mount / "new").read_text() == "new\n"


def test_a_backup(mount: Path, daemon: DaemonProcess, tmp_path: Path) -> None:
    """As docs/operations.md says it."""
    change(mount)
    before, said = tree(mount), status(mount)
    daemon.stop()
    archive = tmp_path / "backup.tar"
    tar = ["tar", "--xattrs", "--xattrs-include=*", "-C", daemon.state]
    subprocess.run([*tar, "-cf", archive, "."], check=True)
    shutil.rmtree(daemon.state)
    daemon.state.mkdir(mode=0o700)
    subprocess.run([*tar, "-xpf", archive], check=True)
    daemon.start()
    wait_for_mount(daemon)
    assert tree(mount) == before
    assert status(mount) == said


def test_what_is_in_the_way_is_not_covered(mount: Path, daemon: DaemonProcess) -> None:
    daemon.run("unmount", "--name", "odd")
    (mount / "mine").write_text("mine\n")
    refused = daemon.run("remount", "--name", "odd", check=False)
    assert refused.returncode != 0
    assert "is not empty" in refused.stderr
    (mount / "mine").unlink()
    daemon.run("remount", "--name", "odd")
    assert (mount / "README.md").exists()


def test_redirected_folders(mount: Path, daemon: DaemonProcess) -> None:
    daemon.run("redirect", "add", "--name", "odd", "node_modules")
    (mount / "node_modules" / "one").write_text("1")
    change(mount)
    daemon.run("remount", "--name", "odd", "--restart")
    assert (mount / "node_modules" / "one").read_text() == "1"
    assert "node_modules" not in status(mount)


def test_prefetch(mount: Path, daemon: DaemonProcess) -> None:
    change(mount)
    daemon.run("prefetch", "--name", "odd", "--wait")
    before = tree(mount)
    daemon.run("prefetch", "--name", "odd", "--wait", "LICENSE")
    assert tree(mount) == before


# The disk


@pytest.fixture
def small(idle_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """A daemon whose state root is a file system of 16 MiB."""
    idle_daemon.state.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", idle_daemon.state]
    subprocess.run(command, check=True)
    idle_daemon.state.chmod(0o700)
    try:
        idle_daemon.start()
        yield idle_daemon
    finally:
        idle_daemon.clean_up()
        subprocess.run(["umount", "-l", idle_daemon.state], check=False, capture_output=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                assert error.errno in (errno.ENOSPC, errno.EDQUOT)
    return filler


@pytest.mark.long
def test_a_full_disk(
    small: DaemonProcess, remote_repo: Callable[..., ServedRepository], kind: str
) -> None:
    """Errors are right, what was written stays, and removing makes room."""
    mount = small.add_repo("odd", remote_repo().url, "--writes", kind)
    small.wait_for("odd", "index")
    change(mount)
    before = tree(mount)
    filler = fill(small.state)
    with pytest.raises(OSError) as refused:
        (mount / "large").write_bytes(b"1" * 100_000)
        os.sync()
    assert refused.value.errno == errno.ENOSPC
    (mount / "large").unlink(missing_ok=True)
    assert tree(mount) == before
    filler.unlink()
    status(mount)
    (mount / "large").write_bytes(b"1" * 100_000)
    assert (mount / "large").read_bytes() == b"1" * 100_000


@pytest.mark.long
def test_a_full_disk_in_the_middle_of_a_move(
    small: DaemonProcess, remote_repo: Callable[..., ServedRepository], kind: str
) -> None:
    """Between the two kinds of writes: what was written stays where it is, and can be moved when
    there is room."""
    mount = small.add_repo("odd", remote_repo().url, "--writes", kind)
    small.wait_for("odd", "index")
    change(mount)
    (mount / "large").write_bytes(os.urandom(5 << 20))
    before, said = tree(mount), status(mount)
    filler = fill(small.state)
    os.truncate(filler, filler.stat().st_size - (1 << 20))
    other = "fuse" if kind == "kernel" else "kernel"
    refused = small.run("remount", "--name", "odd", "--writes", other, check=False)
    assert refused.returncode != 0
    assert "No space left on device" in refused.stderr
    filler.unlink()
    resize = ["mount", "-o", "remount,size=64m", "tmpfs", small.state]
    subprocess.run(resize, check=True)
    for wanted in (kind, other, kind):
        small.run("remount", "--name", "odd", "--writes", wanted)
        wait_for_mount(small)
        assert small.status("odd")["writes"]["kind"] == wanted
        assert tree(mount) == before
        assert status(mount) == said


@pytest.mark.long
@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="needs btrfs-progs")
def test_a_used_up_quota(
    idle_daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    tmp_path: Path,
    kind: str,
) -> None:
    with limited_folder(tmp_path, 60) as folder:
        folder.chmod(0o700)
        idle_daemon.state = folder
        try:
            idle_daemon.start()
            mount = idle_daemon.add_repo("odd", remote_repo().url, "--writes", kind)
            idle_daemon.wait_for("odd", "index")
            change(mount)
            before, said = tree(mount), status(mount)
            with pytest.raises(OSError) as refused, (mount / "large").open("wb") as file:
                while True:
                    file.write(b"1" * 65_536)
            assert refused.value.errno == errno.EDQUOT
            (mount / "large").unlink()
            assert tree(mount) == before
            assert status(mount) == said
        finally:
            idle_daemon.clean_up()
