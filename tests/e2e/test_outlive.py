"""A mount outlives its processes: programs that use it meanwhile see a pause, and no error."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import artifactfs
from artifactfs.daemon.control.client import ControlClient
from artifactfs.paths import StateLayout
from artifactfs.system.processes import arguments_of, parent_of
from tests.e2e import mixed_load
from tests.e2e.comparison import assert_same_tree
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.mount_table import mounted_at, times_mounted
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import PROGRAMS, DaemonProcess, ServedRepository, wait_until
from tests.e2e.test_crashes import has_ended
from tests.fs.mounting import renameat2

RENAME_EXCHANGE = 2

NOBODY = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")
KINDS = [pytest.param("kernel", marks=root_only), "fuse"]


@dataclass
class Outliving:
    """A mount of the odd repository, and a clone of it."""

    daemon: DaemonProcess
    path: Path
    clone: Path
    proxy: DelayProxy | None = None

    def summary(self) -> dict[str, Any]:
        """What the daemon itself knows of it; the command line takes longer than a takeover."""
        with ControlClient(StateLayout(self.daemon.state)) as client:
            (found,) = client.request("list")
        return dict(found)

    def is_mounted(self) -> bool:
        return bool(self.summary()["state"] == "mounted")

    def worker(self) -> int:
        """Who serves it; 0 while nobody does."""
        return int(self.summary()["pid"] or 0)

    def kill_worker(self) -> int:
        worker = self.worker()
        os.kill(worker, signal.SIGKILL)
        return worker

    def is_taken_over_from(self, worker: int) -> bool:
        """Until the daemon has noticed its death, it says what was true before."""
        found = self.summary()
        return found["state"] == "mounted" and found["pid"] not in (None, worker)


@pytest.fixture(params=KINDS)
def outliving(
    request: pytest.FixtureRequest,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
    odd_repository: OddRepository,
    tmp_path: Path,
) -> Outliving:
    url = proxy.url(remote_repo().url)
    mount = daemon.add_repo("odd", url, "--writes", request.param)
    daemon.wait_for("odd", "history")
    daemon.wait_for("odd", "index")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", odd_repository.path, clone], check=True)
    on = daemon.status("odd")["features"]
    assert on["handover"]["on"], on["handover"]["why"]
    return Outliving(daemon, mount, clone, proxy)


@contextlib.contextmanager
def under_load(mount: Outliving, stop: Path) -> Iterator[list[dict[str, object]]]:
    """Programs of all kinds; what they have seen is in the list when they have ended."""
    programs = {
        kind: mixed_load.start(kind, stop, mount.path, mount.clone) for kind in mixed_load.KINDS
    }
    seen: list[dict[str, object]] = []
    try:
        yield seen
    finally:
        stop.touch()
        for kind, program in programs.items():
            said, _ = program.communicate(timeout=200)
            seen.append({"kind": kind, **json.loads(said or '{"errors": ["it has ended"]}')})


def check(seen: list[dict[str, object]], mount: Outliving) -> None:
    print(json.dumps(seen))
    assert [one["errors"] for one in seen] == [[]] * len(seen)
    assert_same_tree(mount.path / "written", mount.clone / "written")
    assert times_mounted(mount.path) == 1


def test_a_worker_that_is_killed_is_not_missed(outliving: Outliving, tmp_path: Path) -> None:
    """Readers, writers, git, an open file, a current folder and a mapping."""
    chooser = random.Random(1)
    with under_load(outliving, tmp_path / "stop") as seen:
        opened = []
        for _ in range(10):
            time.sleep(chooser.random())
            worker = outliving.kill_worker()
            wait_until(partial(outliving.is_taken_over_from, worker), "the next")
            opened.append(descriptors_of(outliving))
    check(seen, outliving)
    assert opened[-1] == pytest.approx(opened[0], abs=3), "nothing stays open of those that died"
    assert outliving.daemon.status("odd")["restarts"] == 10


def test_a_read_that_waits_goes_on_waiting(
    outliving: Outliving, odd_repository: OddRepository
) -> None:
    """Its content is on its way when the worker dies: the next one brings it."""
    path, read = outliving.path / "assets/logo.png", list[bytes]()
    assert outliving.proxy is not None
    proxy, first = outliving.proxy, len(outliving.proxy.requests)
    proxy.hold(lambda request: bool(request.wants))
    waits = threading.Thread(target=lambda: read.append(path.read_bytes()))
    waits.start()
    wait_until(lambda: any(request.wants for request in proxy.requests[first:]), "a request")
    worker = outliving.kill_worker()
    wait_until(lambda: outliving.worker() not in (0, worker), "the next")
    proxy.release()
    waits.join(120)
    assert read == [odd_repository.files[b"assets/logo.png"]]


def test_what_was_done_and_not_answered_is_not_done_again(
    idle_daemon: DaemonProcess, odd_repository: OddRepository, tmp_path: Path
) -> None:
    """The worker dies between the two; the kernel asks the next one for the same."""
    daemon, dies = idle_daemon, tmp_path / "dies"
    daemon.extra_environment["ARTIFACT_FS_DIES"] = str(dies)
    daemon.start()
    options = ("--writes", "fuse", "--xattrs")
    top = daemon.add_repo("odd", str(odd_repository.path), *options)
    assert daemon.status("odd")["features"]["handover-writes"]["on"]
    (top / "old").write_text("old")
    (top / "over").write_text("over")
    (top / "folder").mkdir()
    steps: list[tuple[str, Callable[[], object]]] = [
        ("mkdir", lambda: (top / "made").mkdir()),
        ("mknod", lambda: os.close(os.open(top / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))),
        ("symlink", lambda: (top / "symlink").symlink_to("old")),
        ("link", lambda: (top / "second").hardlink_to(top / "old")),
        ("rename", lambda: (top / "second").rename(top / "moved")),
        ("rename", lambda: (top / "moved").rename(top / "over")),
        ("rename", lambda: renameat2(top / "new", top / "over", RENAME_EXCHANGE)),
        ("unlink", lambda: (top / "new").unlink()),
        ("rmdir", lambda: (top / "folder").rmdir()),
        ("setxattr", lambda: os.setxattr(top / "old", "user.a", b"1", os.XATTR_CREATE)),
        ("setxattr", lambda: os.setxattr(top / "old", "user.a", b"2", os.XATTR_REPLACE)),
        ("setxattr", lambda: os.setxattr(top / "old", "user.b", b"3")),
        ("removexattr", lambda: os.removexattr(top / "old", "user.b")),
        ("setattr", lambda: os.truncate(top / "old", 2)),
        ("unlink", lambda: (top / "README.md").unlink()),
    ]
    for request, step in steps:
        dies.write_text(request)
        step()
        assert not dies.exists(), f"nobody has died of {request}"
        wait_until(lambda: daemon.status("odd")["state"] == "mounted", "the next")
    assert daemon.status("odd")["restarts"] == len(steps)
    assert (top / "made").is_dir() and os.readlink(top / "symlink") == "old"
    assert (top / "old").read_text() == "ol" and os.stat(top / "old").st_nlink == 1
    assert (top / "over").read_text() == "" and os.stat(top / "over").st_nlink == 1
    assert os.listxattr(top / "old") == ["user.a"]
    assert os.getxattr(top / "old", "user.a") == b"2"
    for gone in ("second", "moved", "new", "folder", "README.md"):
        assert not os.path.lexists(top / gone)


def test_a_daemon_that_is_killed_or_started_anew_is_not_missed(
    outliving: Outliving, tmp_path: Path
) -> None:
    daemon = outliving.daemon
    with under_load(outliving, tmp_path / "stop") as seen:
        for again in (False, True, False):
            time.sleep(0.5)
            worker = outliving.worker()
            if again:
                daemon.run("daemon", "restart")
            else:
                daemon.kill()
                time.sleep(0.5)
                assert not has_ended(worker)
                daemon.start()
            wait_until(lambda: daemon.status("odd")["state"] == "mounted", "it is taken over")
            assert outliving.worker() != worker
    check(seen, outliving)
    assert daemon.stop() == 0
    assert not mounted_at(outliving.path)
    wait_until(lambda: not daemon.orphans(), "the fork server's end")


def test_a_worker_that_dies_without_a_daemon_is_replaced(outliving: Outliving) -> None:
    fd = os.open(outliving.path / "README.md", os.O_RDONLY)
    worker = outliving.worker()
    outliving.daemon.kill()
    os.kill(worker, signal.SIGKILL)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0) and os.listdir(outliving.path / "src")
    outliving.daemon.start()
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0)
    os.close(fd)
    found = outliving.daemon.status("odd")
    assert found["state"] == "mounted" and found["pid"] != worker


def test_what_a_killed_daemon_has_left_is_stopped(outliving: Outliving) -> None:
    worker = outliving.worker()
    outliving.daemon.kill()
    assert "had ended before" in outliving.daemon.run("daemon", "stop").stdout
    assert not mounted_at(outliving.path)
    wait_until(partial(has_ended, worker), "its end")
    wait_until(lambda: not outliving.daemon.orphans(), "the keeper's end")


def fork_server_of(worker: int) -> int:
    found = parent_of(worker)
    assert any("forkserver" in argument for argument in arguments_of(found))
    return found


def test_a_daemon_that_is_killed_with_what_keeps_the_mount(outliving: Outliving) -> None:
    """Then nobody can go on with it, but it goes on by itself; the next daemon mounts it anew."""
    daemon, worker = outliving.daemon, outliving.worker()
    keeper = fork_server_of(worker)
    (outliving.path / "new").write_text("new")
    fd = os.open(outliving.path / "README.md", os.O_RDONLY)
    os.kill(keeper, signal.SIGSTOP)  # so that it does nothing before it is killed
    daemon.kill()
    os.kill(keeper, signal.SIGKILL)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0) and not has_ended(worker)
    os.close(fd)
    daemon.start()
    found = daemon.status("odd")
    assert found["state"] == "mounted" and found["pid"] != worker and found["error"] is None
    assert times_mounted(outliving.path) == 1
    wait_until(partial(has_ended, worker), "the end of the one before")
    assert (outliving.path / "new").read_text() == "new"
    assert daemon.stop() == 0
    assert not mounted_at(outliving.path)
    wait_until(lambda: not daemon.orphans(), "the fork server's end")


def test_workers_are_kept_also_when_the_fork_server_was_another_one(outliving: Outliving) -> None:
    daemon, worker = outliving.daemon, outliving.worker()
    address = daemon.state / "keeper.sock"

    def bound() -> tuple[int, int] | None:
        try:
            made = address.stat()
        except FileNotFoundError:
            return None
        return made.st_ino, made.st_ctime_ns  # its number may be that of the one before

    before = bound()
    os.kill(fork_server_of(worker), signal.SIGKILL)
    wait_until(lambda: bound() not in (None, before), "the next fork server has been told")
    fd = os.open(outliving.path / "README.md", os.O_RDONLY)
    daemon.kill()
    daemon.start()
    found = daemon.status("odd")
    assert found["state"] == "mounted" and found["pid"] != worker
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0)
    os.close(fd)


@pytest.mark.parametrize("how", ["stop", "start"])
def test_a_mount_that_was_given_up_when_its_daemon_dies(outliving: Outliving, how: str) -> None:
    daemon, database = outliving.daemon, outliving.daemon.state / "repos/odd/overlay.db"
    kept = database.read_bytes()
    os.truncate(database, 0)
    outliving.kill_worker()
    wait_until(partial(given_up, daemon), "it is given up")
    daemon.kill()
    database.write_bytes(kept)
    if how == "stop":
        assert "had ended before" in daemon.run("daemon", "stop").stdout
        assert not mounted_at(outliving.path)
        wait_until(lambda: not daemon.orphans(), "the keeper's end")
        return
    daemon.start()
    wait_until(lambda: daemon.status("odd")["state"] == "mounted", "it is served")
    assert daemon.status("odd")["error"] is None and times_mounted(outliving.path) == 1
    assert (outliving.path / "README.md").read_bytes()


def test_a_worker_that_dies_at_once_is_given_up(outliving: Outliving) -> None:
    """Five times; then programs get an error, and `status` says what to do."""
    database = outliving.daemon.state / "repos/odd/overlay.db"
    kept = database.read_bytes()
    os.truncate(database, 0)
    outliving.kill_worker()
    found = wait_until(partial(given_up, outliving.daemon), "it is given up")
    assert "died at once 5 times" in found["message"]
    assert "artifact-fs remount --name odd" in found["hint"]
    with pytest.raises(OSError) as caught:
        os.listdir(outliving.path / "src/package5")
        os.stat(outliving.path / "nobody-has-looked-for-this")
    assert caught.value.errno == errno.EIO
    database.write_bytes(kept)
    outliving.daemon.run("remount", "--name", "odd")
    assert (outliving.path / "README.md").read_bytes()


def given_up(daemon: DaemonProcess) -> dict[str, str] | None:
    error = daemon.status("odd")["error"]
    return error if error is not None and "died at once" in error["message"] else None


def test_another_answer_to_the_kernel_never_takes_over(outliving: Outliving) -> None:
    """The mount goes on with the version that has begun it, and `status` says so."""
    daemon, worker = outliving.daemon, outliving.worker()
    fd = os.open(outliving.path / "README.md", os.O_RDONLY)
    daemon.kill()
    daemon.start("--disable", "cached-symlinks")
    found = daemon.status("odd")
    assert found["state"] == "mounted" and found["pid"] == worker
    assert "artifact-fs remount --name odd" in found["error"]["hint"]
    daemon.run("daemon", "--log-level", "debug", "reload")  # of which this process hears nothing
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0)
    os.close(fd)
    daemon.run("remount", "--name", "odd")
    found = daemon.status("odd")
    assert found["state"] == "mounted" and found["pid"] != worker and found["error"] is None
    assert (outliving.path / "README.md").read_bytes()


def test_the_version_that_began_the_mount_dies(outliving: Outliving) -> None:
    """Nobody can go on with it then: it is mounted anew, without being asked for."""
    daemon, worker = outliving.daemon, outliving.worker()
    daemon.kill()
    daemon.start("--disable", "cached-symlinks")
    assert daemon.status("odd")["pid"] == worker
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: outliving.daemon.status("odd")["pid"] not in (None, worker), "the next")
    wait_until(lambda: daemon.status("odd")["state"] == "mounted", "it is mounted")
    assert daemon.status("odd")["error"] is None and times_mounted(outliving.path) == 1
    assert (outliving.path / "README.md").read_bytes()


def descriptors_of(mount: Outliving) -> list[int]:
    """How many the daemon and the fork server have open."""
    processes = (mount.daemon.pid, fork_server_of(mount.worker()))
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in processes]


def pauses(seen: list[dict[str, object]]) -> str:
    longest = sorted(float(str(one["longest_s"])) for one in seen)
    return f"longest steps of the programs: {[round(1000 * s) for s in longest]} ms"


@pytest.mark.long
def test_many_kills(outliving: Outliving, tmp_path: Path) -> None:
    """500 of the worker, at random moments. Prints how long a request was not answered."""
    chooser, gaps = random.Random(5), list[float]()
    kills = int(os.environ.get("OUTLIVE_KILLS", "500"))
    with under_load(outliving, tmp_path / "stop") as seen:
        for number in range(kills):
            time.sleep(chooser.random() * 0.6)
            worker = outliving.worker()
            began = time.monotonic()
            os.kill(worker, signal.SIGKILL)
            with contextlib.suppress(FileNotFoundError):
                os.stat(outliving.path / f"nobody-has-looked-for-{number}")
            gaps.append(time.monotonic() - began)
            wait_until(partial(outliving.is_taken_over_from, worker), "the next")
    check(seen, outliving)
    median, longest = statistics.median(gaps), max(gaps)
    print(f"{kills} kills: pause median {1000 * median:.0f} ms, longest {1000 * longest:.0f} ms;")
    print(pauses(seen))


@pytest.mark.long
def test_many_kills_of_the_daemon(outliving: Outliving, tmp_path: Path) -> None:
    """50 of the supervisor, and 20 restarts by itself, as an upgrade does."""
    daemon = outliving.daemon
    with under_load(outliving, tmp_path / "stop") as seen:
        for number in range(int(os.environ.get("OUTLIVE_DAEMONS", "70"))):
            time.sleep(0.2)
            if number % 7 > 4:
                daemon.run("daemon", "restart")
            else:
                daemon.kill()
                daemon.start()
            wait_until(outliving.is_mounted, "it is taken over")
    check(seen, outliving)
    print(pauses(seen))


class Versions:
    """Two versions of the package, one of which is installed for a daemon."""

    def __init__(self, folder: Path, daemon: DaemonProcess) -> None:
        self._folder = folder
        self._daemon = daemon
        self.installed = "1"
        for version in ("1", "2"):
            package = folder / version / "artifactfs"
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(artifactfs.__file__).parent, package, ignore=skip)
            with (package / "__init__.py").open("a") as file:
                file.write(f"\n__version__ = {version!r}\n")
        self.install("1")
        daemon.extra_environment["PYTHONPATH"] = str(folder / "installed")

    def install(self, version: str) -> None:
        (self._folder / "next").symlink_to(version)
        (self._folder / "next").rename(self._folder / "installed")
        self.installed = version

    def of_the_daemon(self) -> str:
        with ControlClient(StateLayout(self._daemon.state)) as client:
            return str(client.request("ping")["version"])

    def upgrade(self) -> None:
        self.install("2" if self.installed == "1" else "1")
        self._daemon.run("daemon", "restart")
        assert self.of_the_daemon() == self.installed


def upgraded(
    daemon: DaemonProcess, odd_repository: OddRepository, folder: Path, writes: str, times: int
) -> None:
    versions = Versions(folder, daemon)
    daemon.start()
    assert versions.of_the_daemon() == "1"
    path = daemon.add_repo("odd", str(odd_repository.path), "--writes", writes)
    daemon.wait_for("odd", "index")
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", odd_repository.path, clone], check=True)
    mount = Outliving(daemon, path, clone)
    with under_load(mount, folder / "stop") as seen:
        for _ in range(times):
            worker = mount.worker()
            time.sleep(0.3)
            versions.upgrade()
            wait_until(lambda: daemon.status("odd")["state"] == "mounted", "it is taken over")
            assert mount.worker() != worker
    check(seen, mount)
    print(pauses(seen))


@pytest.mark.parametrize("writes", KINDS)
def test_another_version_is_installed(
    idle_daemon: DaemonProcess, odd_repository: OddRepository, tmp_path: Path, writes: str
) -> None:
    upgraded(idle_daemon, odd_repository, tmp_path, writes, 2)


@pytest.mark.long
@pytest.mark.parametrize("writes", KINDS)
def test_many_upgrades(
    idle_daemon: DaemonProcess, odd_repository: OddRepository, tmp_path: Path, writes: str
) -> None:
    times = int(os.environ.get("OUTLIVE_UPGRADES", "20"))
    upgraded(idle_daemon, odd_repository, tmp_path, writes, times)


@root_only
def test_an_ordinary_user(
    open_folder: Path, odd_repository: OddRepository, open_device: None
) -> None:
    """fusermount3 makes the mount; the descriptor that it hands over is kept in the same way."""
    user = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    tried = [*user, PROGRAMS / "artifact-fs", "--version"]
    home = {"HOME": str(open_folder)}
    if subprocess.run(tried, env=home, capture_output=True, cwd="/").returncode != 0:
        pytest.skip("an ordinary user cannot run what is installed here")
    source = open_folder / "source.git"
    subprocess.run(["git", "clone", "-q", "--bare", odd_repository.path, source], check=True)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", open_folder], check=True)
    tree = open_folder / "tree"
    environment = {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "HOME": str(open_folder),
        "ARTIFACT_FS_ROOT": str(open_folder / "state"),
    }

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [*user, *command], env=environment, cwd="/", text=True, capture_output=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def status() -> dict[str, object]:
        found = json.loads(run("artifact-fs", "status", "--json"))
        return dict(found[0])

    run("artifact-fs", "mount", source, tree)
    script = (
        "import os, sys, time\n"
        "os.chdir(sys.argv[1]); fd = os.open('README.md', os.O_RDONLY)\n"
        "kept = open('new', 'w'); os.unlink('new'); print('ready', flush=True); input()\n"
        "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "assert os.pread(fd, 9, 0); assert 'README.md' in os.listdir('.')\n"
        "kept.write('more'); kept.flush(); assert os.fstat(kept.fileno()).st_size == 4\n"
    )
    program = subprocess.Popen(
        [*user, "/usr/bin/python3", "-c", script, tree],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    try:
        worker = int(str(status()["pid"]))
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: status()["pid"] not in (None, worker), "the next worker")
        program.communicate("go on\n", timeout=60)
        assert program.returncode == 0
    finally:
        run("artifact-fs", "daemon", "stop")
    assert not mounted_at(tree)


def test_says_so_where_it_cannot_be(
    idle_daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    """As with a kernel that sends no request again: today's way."""
    idle_daemon.extra_environment["ARTIFACT_FS_DISABLE"] = "handover"
    idle_daemon.start()
    mount = idle_daemon.add_repo("odd", remote_repo().url)
    found = idle_daemon.status("odd")["features"]["handover"]
    assert not found["on"] and "switched off" in found["why"]
    assert "handover" in idle_daemon.run("status", "-v", "odd").stdout
    fd = os.open(mount / "README.md", os.O_RDONLY)
    worker = int(idle_daemon.status("odd")["pid"])
    os.kill(worker, signal.SIGKILL)
    wait_until(partial(has_ended, worker), "the end")
    with pytest.raises(OSError):
        os.pread(fd, 10, 0)
    os.close(fd)
    wait_until(lambda: idle_daemon.status("odd")["pid"] not in (None, worker), "the next worker")
    wait_until(lambda: idle_daemon.status("odd")["state"] == "mounted", "the mount")
    assert (mount / "README.md").read_bytes()
