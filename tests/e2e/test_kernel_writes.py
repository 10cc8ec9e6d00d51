"""Where the kernel's overlayfs takes the writes (`--writes kernel`): what is its own there.

What both kinds of writes have in common is tested by all other tests: for root with the kernel's,
with our own mount's for ordinary users and for ``ARTIFACT_FS_ADD_REPO_WRITES=fuse``.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artifactfs.fs.native import newfolders
from tests.e2e.comparison import tree
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.kernel_mount import snapshot, status
from tests.e2e.mount_table import mounted_at, overlays_below
from tests.e2e.processes import (
    DaemonProcess,
    ServedRepository,
    wait_until,
)
from tests.e2e.test_crashes import has_ended
from tests.fs.gitview.test_fsmonitor_random import RandomChanges, compare
from tests.fs.mounting import git

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")

STRANGER = 65533


def test_says_who_takes_the_writes(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    url = remote_repo().url
    common = ("--remote", url, "--hydrate", "none")
    said = daemon.run("add-repo", "--name", "one", *common, "--writes", "auto").stdout
    assert "the kernel takes the writes" in said
    assert (
        "writes    by the kernel, on the disk"
        in daemon.run("status", "one", "--no-porcelain").stdout
    )
    follow = ("--follow", "main", "--writes")
    said = daemon.run("add-repo", "--name", "two", *common, *follow, "auto").stdout
    assert "writes go through our process: a tree that follows" in said
    refused = daemon.run("add-repo", "--name", "three", *common, *follow, "kernel", check=False)
    assert refused.returncode != 0
    assert "the kernel cannot take the writes" in refused.stderr
    assert overlays_below(daemon.directory) == [daemon.mounts / "one"]


def test_a_file_that_only_the_upper_folder_had_is_seen_to_go(kernel: Path) -> None:
    (kernel / "untracked").write_text("1")
    (kernel / "src" / "committed").write_text("1")
    git("add", "src/committed", cwd=kernel)
    git("commit", "-qm", "New", cwd=kernel)
    assert status(kernel) == "?? untracked\n"
    (kernel / "untracked").unlink()
    (kernel / "src" / "committed").unlink()
    assert status(kernel) == " D src/committed\n"
    git("checkout", "--", "src/committed", cwd=kernel)
    assert status(kernel) == ""


def test_an_added_file_is_seen_to_go(kernel: Path) -> None:
    """It was in git's index, and in no look."""
    git("status", "--porcelain", cwd=kernel)
    for place in (kernel, kernel / "src"):
        (place / "added").write_text("1")
        git("add", "added", cwd=place)
        (place / "added").unlink()
    assert status(kernel) == "AD added\nAD src/added\n"


def answer_to(kernel: Path, daemon: DaemonProcess, token: str) -> tuple[str, set[str]]:
    """Git's fsmonitor is told this: a token, and names."""
    folder = daemon.state / "repos/odd/lower/.artifact-fs/fsmonitor"
    head, *names = (folder / token).read_bytes().decode().split("\0")
    return head, {name for name in names if name}


def test_git_is_told_of_what_changed_alone(kernel: Path, daemon: DaemonProcess) -> None:
    """Not of what is untracked, or was checked out, each time."""
    git("checkout", "-q", "topic", cwd=kernel)
    for number in range(100):
        (kernel / f"node_modules/package{number}/lib").mkdir(parents=True)
        (kernel / f"node_modules/package{number}/lib/main.js").write_text("1")

    def settled() -> str | None:
        token, _ = answer_to(kernel, daemon, "none")
        return token if told_since(token) == set() else None

    def told_since(token: str) -> set[str]:
        """But for what is named each time: folders that are new, and this file."""
        told = answer_to(kernel, daemon, token)[1]
        return {name for name in told if not name.endswith("/")} - {".gitmodules"}

    token = wait_until(settled, "nothing more to tell")
    (kernel / "node_modules/package7/lib/other.js").write_text("1")
    (kernel / "README.md").write_text("1")
    told = told_since(token) - {".artifact-fs-changed"}
    assert told == {"node_modules/package7/lib/.artifact-fs-changed", "README.md"}
    assert status(kernel) == " M README.md\n?? node_modules/\n"


def test_new_folders_are_named_where_git_tracks_something_in_them(
    kernel: Path, daemon: DaemonProcess
) -> None:
    file = kernel / "brand-new/deep/file"
    file.parent.mkdir(parents=True)
    file.write_text("1")

    def settled() -> str | None:
        """A token of the time when there was nothing more to tell."""
        token, _ = answer_to(kernel, daemon, "none")
        return token if names_since(token) == set() else None

    def names_since(token: str) -> set[str]:
        return answer_to(kernel, daemon, token)[1] - {".gitmodules"}

    token = wait_until(settled, "nothing to tell")
    file.write_text("22")  # of what is not tracked git needs to know the names alone
    time.sleep(0.05)  # what was written just now is named twice, as it may change once more
    assert names_since(token) == set()
    assert names_since(f"{token}+") == {"brand-new/"}  # to a git that uses another index
    git("add", "brand-new", cwd=kernel)
    assert names_since(token) == {"brand-new/"}
    token = wait_until(settled, "nothing to tell")
    file.write_text("333")
    assert names_since(token) == {"brand-new/deep/file"}
    assert status(kernel) == "AM brand-new/deep/file\n"
    file.rename(kernel / "brand-new/file")
    assert status(kernel) == "AD brand-new/deep/file\n?? brand-new/file\n"
    for number in range(newfolders.MOST_FILES):
        (kernel / f"brand-new/{number}").touch()
    wait_until(lambda: names_since(answer_to(kernel, daemon, "none")[0]) == {"brand-new/"}, "it")
    file.write_text("4444")
    assert status(kernel).startswith("AM brand-new/deep/file\n")


def test_files_that_come_and_go_between_two_looks(kernel: Path) -> None:
    for place in (kernel, kernel / "src", kernel / "made"):
        place.mkdir(exist_ok=True)
        (place / "passing").write_text("1")
        git("status", "--porcelain", cwd=kernel)
        (place / "passing").unlink()
        (place / "second").write_text("1")
        (place / "second").unlink()
        assert status(kernel) == ""


def test_others_see_nothing_without_allow_other(kernel: Path) -> None:
    for folder in (kernel.parent.parent, kernel.parent):
        folder.chmod(0o755)
    command = ["cat", str(kernel / "README.md")]
    done = subprocess.run(command, user=STRANGER, group=STRANGER, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_allow_other_lets_others_in(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    mount = daemon.add_repo("odd", remote_repo().url, "--writes", "kernel", "--allow-other")
    for folder in (daemon.directory, daemon.mounts):
        folder.chmod(0o755)
    command = ["cat", str(mount / "README.md")]
    subprocess.run(command, user=STRANGER, group=STRANGER, check=True, capture_output=True)


def test_they_can_be_switched_off_and_on(kernel: Path, daemon: DaemonProcess) -> None:
    (kernel / "README.md").write_text("changed\n")
    (kernel / "LICENSE").unlink()
    before = status(kernel)
    for switched_off, kind in ((["--disable", "kernel-writes"], "fuse"), ([], "kernel")):
        daemon.stop()
        daemon.start(*switched_off)
        wait_until(lambda: mounted_at(kernel), "the mount")
        found = daemon.status("odd")
        assert found["writes"]["kind"] == kind
        assert found["features"]["kernel-writes"]["on"] == (kind == "kernel")
        assert ("ARTIFACT_FS_DISABLE" in found["writes"]["why"]) == (kind == "fuse")
        assert (kernel / "README.md").read_text() == "changed\n"
        assert status(kernel) == before


def test_the_gitdir_stays_where_it_is(kernel: Path) -> None:
    for change in (
        lambda: (kernel / ".git").rename(kernel / "moved"),
        lambda: (kernel / ".git").rmdir(),
    ):
        with pytest.raises(OSError) as refused:
            change()
        assert refused.value.errno == errno.EBUSY
    assert git("rev-parse", "--git-dir", cwd=kernel) == ".git\n"


def test_a_gitfile_stays_where_it_is(
    idle_daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    idle_daemon.extra_environment["ARTIFACT_FS_DISABLE"] = "git-folder"
    idle_daemon.start()
    mount = idle_daemon.add_repo("odd", remote_repo().url, "--writes", "kernel")
    with pytest.raises(OSError) as refused:
        (mount / ".git").unlink()
    assert refused.value.errno == errno.EBUSY
    assert status(mount) == ""


def test_names_and_modes_ask_the_remote_for_nothing(
    kernel: Path, daemon: DaemonProcess, proxy: DelayProxy
) -> None:
    daemon.wait_for("odd", "sizes")
    size = (kernel / "LICENSE").stat().st_size
    with proxy.recording() as requests:
        (kernel / "LICENSE").chmod(0o755)
        (kernel / "LICENSE").rename(kernel / "src" / "LICENSE")
        (kernel / "src" / "package0").rename(kernel / "package0")
        shutil.rmtree(kernel / "many")
        assert (kernel / "src" / "LICENSE").stat().st_size == size
    assert requests == []
    with proxy.recording() as requests, (kernel / "src" / "hello.c").open("a") as file:
        file.write("/* more */\n")
    assert len(requests) == 1


def test_the_remote_is_away_when_a_file_is_to_be_copied(
    kernel: Path, proxy: DelayProxy, daemon: DaemonProcess
) -> None:
    path = kernel / "src" / "hello.c"
    before = tree(kernel, content=False)
    proxy.refuse()
    with pytest.raises(OSError) as failed:
        path.open("a").close()
    assert failed.value.errno in (errno.EIO, errno.ETIMEDOUT, errno.EHOSTUNREACH)
    assert not (daemon.state / "repos/odd/native/upper/src/hello.c").exists()
    proxy.accept()
    assert tree(kernel, content=False) == before
    wait_until(lambda: appended(path, "more\n"), "the remote again")
    assert path.read_text().endswith("more\n")


def appended(path: Path, text: str) -> bool:
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError:
        return False
    return True


def test_a_thousand_moved_folders(kernel: Path) -> None:
    for number in range(1_000):
        (kernel / "wide" / f"{number}" / "in").mkdir(parents=True)
        (kernel / "wide" / f"{number}" / "in" / "file").write_text("1")
    git("add", "wide", cwd=kernel)
    git("commit", "-qm", "Wide", cwd=kernel)
    assert status(kernel) == ""
    (kernel / "moved").mkdir()
    for folder in (kernel / "wide").iterdir():
        folder.rename(kernel / "moved" / folder.name)
    (kernel / "src").rename(kernel / "moved" / "src")
    found = status(kernel)
    assert found.count(" D wide/") == 1_000
    assert "?? moved/" in found
    git("add", "-A", cwd=kernel)
    assert status(kernel).count("R  wide/") == 1_000


def test_an_old_mapping_keeps_the_old_content(kernel: Path) -> None:
    """Not as POSIX has it: see the semantics. A descriptor reads what there is now."""
    with (kernel / "README.md").open("rb") as before:
        mapping = mmap.mmap(before.fileno(), 0, prot=mmap.PROT_READ)
        with (kernel / "README.md").open("r+b") as file:
            file.write(b"CHANGED")
        assert not mapping[:].startswith(b"CHANGED")
        assert before.read().startswith(b"CHANGED")


def test_what_our_own_mount_cannot(kernel: Path) -> None:
    with (kernel / "room").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    descriptor = os.open(kernel, os.O_TMPFILE | os.O_RDWR)
    os.close(descriptor)
    os.setxattr(kernel / "room", "user.note", b"kept")
    assert os.getxattr(kernel / "room", "user.note") == b"kept"


def test_what_differs(kernel: Path, daemon: DaemonProcess) -> None:
    (kernel / "new").write_text("new\n")
    (kernel / "README.md").write_text("changed\n")
    (kernel / "LICENSE").chmod(0o755)
    (kernel / "Makefile").unlink()
    shutil.rmtree(kernel / "many")
    (kernel / "src" / "package0").rename(kernel / "package0")
    written = kernel / "src" / "hello.c"
    written.write_bytes(written.read_bytes())
    found = {c["path"]: c["kind"] for c in daemon.json("diff-overlay", "--name", "odd")}
    expected = {
        "new": "added",
        "README.md": "modified",
        "LICENSE": "mode",
        "Makefile": "deleted",
        "many/": "deleted",
        "package0/": "added",
        "src/package0/": "deleted",
    }
    assert {path: found.get(path) for path in expected} == expected
    assert "src/hello.c" not in found
    git("add", "new", cwd=kernel)  # which has the daemon look what is as in HEAD
    size = sum(len(path.read_bytes()) for path in (kernel / "new", kernel / "README.md"))
    expected_overlay = {"dirty_files": 2, "dirty_bytes": size}
    wait_until(lambda: daemon.status("odd")["overlay"] == expected_overlay, "what is local")


def test_a_worker_that_is_killed_loses_nothing(kernel: Path, daemon: DaemonProcess) -> None:
    (kernel / "src").rename(kernel / "moved")
    for number in range(3):
        (kernel / f"new{number}").write_text(f"{number}")
        (kernel / "README.md").write_text(f"{number}")
        before, said = tree(kernel), status(kernel)
        kill_and_wait(daemon, kernel)
        assert tree(kernel) == before
        assert status(kernel) == said


def kill_and_wait(daemon: DaemonProcess, mount: Path) -> None:
    worker = daemon.worker(mount)
    os.kill(worker, signal.SIGKILL)
    wait_until(partial(has_ended, worker), "the end")

    def back() -> bool:
        if daemon.status(mount.name)["pid"] in (None, worker):
            return False
        return daemon.status(mount.name)["state"] == "mounted"

    wait_until(back, "the mount after a crash")


def test_everything_killed_and_started_again(kernel: Path, daemon: DaemonProcess) -> None:
    (kernel / "new").write_text("new\n")
    (kernel / "Makefile").unlink()
    before, said = tree(kernel), status(kernel)
    worker = daemon.worker(kernel)
    os.kill(worker, signal.SIGKILL)
    daemon.kill()
    wait_until(partial(has_ended, worker), "the end")
    assert (kernel / "new").read_text() == "new\n"  # also while nobody serves the rest
    daemon.start()
    wait_until(lambda: daemon.status("odd")["state"] == "mounted", "the mount")
    assert tree(kernel) == before
    assert status(kernel) == said


def test_dead_mounts_are_cleared_without_a_daemon(kernel: Path, daemon: DaemonProcess) -> None:
    os.kill(daemon.worker(kernel), signal.SIGKILL)
    daemon.kill()
    daemon.run("unmount", "--name", "odd")
    assert not mounted_at(kernel)
    assert not mounted_at(daemon.state / "repos/odd/lower")


def test_unmounted_by_umount(kernel: Path, daemon: DaemonProcess) -> None:
    subprocess.run(["umount", "--recursive", str(kernel)], check=True)
    wait_until(lambda: daemon.status("odd")["state"] == "unmounted", "the end")
    assert not mounted_at(daemon.state / "repos/odd/lower")
    daemon.run("remount", "--name", "odd")
    assert status(kernel) == ""


def test_busy_mounts_stay(kernel: Path, daemon: DaemonProcess) -> None:
    with (kernel / "README.md").open():
        refused = daemon.run("unmount", "--name", "odd", check=False)
        assert refused.returncode != 0
        assert "busy" in refused.stderr
        assert status(kernel) == ""
    daemon.run("unmount", "--name", "odd")
    assert not mounted_at(kernel)
    assert os.listdir(kernel) == []


def test_removal_refuses_what_would_be_lost(kernel: Path, daemon: DaemonProcess) -> None:
    (kernel / "new").write_text("new\n")
    refused = daemon.run("remove-repo", "odd", check=False)
    assert refused.returncode != 0
    assert "1 local change (new)" in refused.stderr
    daemon.run("unmount", "--name", "odd")
    refused = daemon.run("remove-repo", "odd", check=False)
    assert refused.returncode != 0
    assert "may have local changes" in refused.stderr
    daemon.run("remove-repo", "odd", "--force")
    assert not (daemon.state / "repos/odd").exists()


def test_switch_brings_everything_in_one_batch(
    kernel: Path, daemon: DaemonProcess, proxy: DelayProxy
) -> None:
    with proxy.recording() as requests:
        daemon.run("switch", "topic", "--name", "odd")
    assert len([request for request in requests if request.wants]) <= 2
    assert status(kernel) == ""
    assert git("rev-parse", "--abbrev-ref", "HEAD", cwd=kernel) == "topic\n"


@dataclass(slots=True)
class AsMount:
    """What `RandomChanges` needs of a mount."""

    daemon: DaemonProcess
    path: Path

    def restart(self, *, kill: bool) -> None:
        if kill:
            kill_and_wait(self.daemon, self.path)
        else:
            self.daemon.run("remount", "--name", self.path.name, "--restart", "--force")

    def ask(self, command: str, **args: Any) -> Any:
        """There is nothing to compact."""


def check_random_changes(mount: AsMount, seed: int, steps: int) -> None:
    changes = RandomChanges(mount, seed)  # type: ignore[arg-type]
    done: list[str] = []
    for number in range(steps):
        try:
            done.append(changes.step())
        except subprocess.CalledProcessError:  # git may have nothing to stash
            continue
        for _ in range(2):
            try:
                compare(mount.path)
            except AssertionError as error:
                error.add_note(f"seed {seed}, step {number}: {done[-5:]}")
                raise


@pytest.fixture
def small(daemon: DaemonProcess, tmp_path: Path) -> AsMount:
    source = tmp_path / "source"
    for name in ("README", "src/a", "src/deep/b", "docs/c", "docs/d/e"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    git("init", "-q", "-b", "main", ".", cwd=source)
    git("add", ".", cwd=source)
    git("commit", "-qm", "First", cwd=source)
    mount = daemon.add_repo("small", source.as_uri(), "--writes", "kernel")
    return AsMount(daemon, mount)


def test_git_status_leaves_the_index_as_it_is(small: AsMount) -> None:
    """Where nothing has changed: also with a folder that is new, and not tracked."""
    (small.path / "brand-new").mkdir()
    (small.path / "brand-new/file").touch()
    index = small.daemon.state / "repos/small/git/index"
    git("status", cwd=small.path)  # which waits for it

    def stays() -> bool:
        before = index.stat().st_ino
        assert status(small.path) == "?? brand-new/\n"
        return index.stat().st_ino == before

    wait_until(stays, "an index that stays")


@pytest.mark.parametrize("seed", range(2))
def test_random_changes(small: AsMount, seed: int) -> None:
    check_random_changes(small, seed, 40)


def test_random_changes_without_the_compiled_looks(small: AsMount) -> None:
    small.daemon.stop()
    small.daemon.start("--disable", "fast-looks")
    wait_until(lambda: mounted_at(small.path), "the mount")
    found = small.daemon.status("small")["features"]
    assert (found["kernel-writes"]["on"], found["fast-looks"]["on"]) == (True, False)
    check_random_changes(small, 2, 25)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_random_changes(small: AsMount, seed: int) -> None:
    check_random_changes(small, seed, 160)


class Model:
    """Random changes in a mount, each followed by the same in a folder if it worked."""

    def __init__(self, mount: Path, model: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.mount, self.model = mount, model
        self.done = self.failed = 0

    def path(self) -> str:
        """Something that is there, or not; never `.git`."""
        folders = [str(Path(top).relative_to(self.model)) for top, _, _ in os.walk(self.model)]
        folder = self.random.choice(folders)
        there = sorted(os.listdir(self.model / folder))
        names = [*self.random.sample(there, min(4, len(there))), "a", "b", "new"]
        return os.path.normpath(os.path.join(folder, self.random.choice(names)))

    def step(self) -> None:
        one, other, text = self.path(), self.path(), str(self.random.random())
        mode = self.random.choice([0o600, 0o644, 0o755])

        def append(top: Path) -> None:
            descriptor = os.open(top / one, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)

        def replace(top: Path) -> None:
            (top / "temporary").write_text(text)
            os.replace(top / "temporary", top / one)

        changes: list[Callable[[Path], object]] = [
            append,
            append,
            replace,
            lambda top: (top / one).mkdir(),
            lambda top: (top / one).rename(top / other),
            lambda top: (top / one).unlink(),
            lambda top: (top / one).rmdir(),
            lambda top: os.link(top / one, top / other, follow_symlinks=False),
            lambda top: (top / one).symlink_to(text),
            lambda top: None if (top / one).is_symlink() else (top / one).chmod(mode),
        ]
        change = self.random.choice(changes)
        try:
            change(self.mount)
        except OSError:
            self.failed += 1
            with contextlib.suppress(OSError):
                (self.mount / "temporary").unlink()
            return
        self.done += 1
        with contextlib.suppress(FileNotFoundError):
            change(self.model)


def modes_and_contents(top: Path) -> dict[str, tuple[object, ...]]:
    found = {name: (seen[0], seen[3], seen[5]) for name, seen in snapshot(top).items()}
    found.pop("temporary", None)  # of a step that failed in its midst
    return found


def check_kills(small: AsMount, tmp_path: Path, seed: int, kills: int) -> None:
    """SIGKILL of the worker, or of all, at random moments: what worked is there, nothing else."""
    daemon, mount = small.daemon, small.path
    model_folder = tmp_path / "model"
    shutil.copytree(mount, model_folder, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    model = Model(mount, model_folder, seed)
    for number in range(kills):
        worker = daemon.worker(mount)
        victims = [worker, daemon.pid] if number % 5 == 4 else [worker]
        killer = threading.Timer(model.random.random() * 0.2, kill_all, [victims])
        killer.start()
        for _ in range(60):
            model.step()  # before, while nobody serves, and when somebody is about to
        killer.join()
        if len(victims) > 1:
            daemon.kill()
            wait_until(partial(has_ended, worker), "the end")
            daemon.start()
        wait_until(partial(serves_again, daemon, mount, worker), "the mount")
        assert modes_and_contents(mount) == modes_and_contents(model_folder), (seed, number)
        status(mount)
        print("kills:", number + 1, "changes:", model.done, "refused:", model.failed)
    assert model.done


def kill_all(victims: list[int]) -> None:
    for victim in victims:
        os.kill(victim, signal.SIGKILL)


def serves_again(daemon: DaemonProcess, mount: Path, before: int) -> bool:
    found = daemon.status(mount.name)
    return found["state"] == "mounted" and found["pid"] not in (None, before)


def test_killed_at_some_moments(small: AsMount, tmp_path: Path) -> None:
    check_kills(small, tmp_path, seed=1, kills=5)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_at_many_moments(small: AsMount, tmp_path: Path) -> None:
    check_kills(small, tmp_path, seed=2, kills=200)


# The base moves to HEAD


def test_what_equals_head_is_dropped_at_the_next_mount(
    kernel: Path, daemon: DaemonProcess, proxy: DelayProxy
) -> None:
    before = snapshot(kernel)
    git("checkout", "-q", "topic", cwd=kernel)
    (kernel / "untracked").write_text("mine\n")
    (kernel / "LICENSE").write_text("mine\n")
    (kernel / "LICENSE").chmod(0o600)
    after, said = snapshot(kernel), status(kernel)
    assert daemon.status("odd")["overlay"]["dirty_files"] > 2
    daemon.run("remount", "--name", "odd", "--restart")
    head = git("rev-parse", "HEAD", cwd=kernel).strip()
    assert daemon.status("odd")["commit"] == head
    assert daemon.status("odd")["overlay"]["dirty_files"] == 2
    assert contents(snapshot(kernel)) == contents(after)
    assert status(kernel) == said
    git("checkout", "-q", "main", "--", ".", cwd=kernel)
    git("checkout", "-qf", "main", cwd=kernel)
    (kernel / "untracked").unlink()
    daemon.run("remount", "--name", "odd", "--restart")
    assert daemon.status("odd")["overlay"] == {"dirty_files": 0, "dirty_bytes": 0}
    assert contents(snapshot(kernel)) == contents(before)
    assert daemon.json("diff-overlay", "--name", "odd") == []


def contents(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    return {name: (seen[0], seen[1], seen[2], seen[5]) for name, seen in found.items()}


def test_the_base_stays_where_it_must(kernel: Path, daemon: DaemonProcess) -> None:
    """A commit that only is here; a HEAD that the tree is not at."""
    base = daemon.status("odd")["commit"]
    (kernel / "new").write_text("new\n")
    git("add", "new", cwd=kernel)
    git("commit", "-qm", "Only here", cwd=kernel)
    daemon.run("remount", "--name", "odd", "--restart")
    assert daemon.status("odd")["commit"] == base
    assert status(kernel) == ""
    git("reset", "-q", "--soft", "origin/topic", cwd=kernel)
    before, said = snapshot(kernel), status(kernel)
    daemon.run("remount", "--name", "odd", "--restart")
    assert daemon.status("odd")["commit"] == base
    git("reset", "-q", cwd=kernel)
    said = status(kernel)
    daemon.run("remount", "--name", "odd", "--restart")
    assert daemon.status("odd")["commit"] == base
    assert snapshot(kernel) == before
    assert status(kernel) == said
