"""A mount outlives its processes: programs that use it meanwhile see a pause, and no error."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import mixed_load
from tests.e2e.comparison import assert_same_tree
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.mount_table import mounted_at, times_mounted
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import PROGRAMS, DaemonProcess, ServedRepository, wait_until
from tests.e2e.test_crashes import has_ended

NOBODY = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")
KINDS = [pytest.param("kernel", marks=root_only), "fuse"]


@dataclass
class Outliving:
    """A mount of the odd repository, and a clone of it."""

    daemon: DaemonProcess
    path: Path
    clone: Path
    proxy: DelayProxy

    def worker(self) -> int:
        return int(self.daemon.status("odd")["pid"])

    def kill_worker(self) -> int:
        worker = self.worker()
        os.kill(worker, signal.SIGKILL)
        return worker


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
            said, _ = program.communicate(timeout=120)
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
        for _ in range(10):
            time.sleep(chooser.random())
            outliving.kill_worker()
            wait_until(lambda: outliving.daemon.status("odd")["state"] == "mounted", "the next")
    check(seen, outliving)
    assert outliving.daemon.status("odd")["restarts"] == 10


def test_a_read_that_waits_goes_on_waiting(
    outliving: Outliving, odd_repository: OddRepository
) -> None:
    """Its content is on its way when the worker dies: the next one brings it."""
    path, read = outliving.path / "assets/logo.png", list[bytes]()
    outliving.proxy.hold(lambda request: bool(request.wants))
    waits = threading.Thread(target=lambda: read.append(path.read_bytes()))
    waits.start()
    time.sleep(0.3)
    worker = outliving.kill_worker()
    wait_until(lambda: outliving.worker() not in (None, worker), "the next")
    outliving.proxy.release()
    waits.join(60)
    assert read == [odd_repository.files[b"assets/logo.png"]]


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
    assert not daemon.orphans()


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
    assert has_ended(worker) and not mounted_at(outliving.path)
    wait_until(lambda: not outliving.daemon.orphans(), "the keeper's end")


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
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0)
    os.close(fd)
    daemon.run("remount", "--name", "odd")
    found = daemon.status("odd")
    assert found["state"] == "mounted" and found["pid"] != worker and found["error"] is None
    assert (outliving.path / "README.md").read_bytes()


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
            began = time.monotonic()
            outliving.kill_worker()
            with contextlib.suppress(FileNotFoundError):
                os.stat(outliving.path / f"nobody-has-looked-for-{number}")
            gaps.append(time.monotonic() - began)
            wait_until(lambda: outliving.daemon.status("odd")["state"] == "mounted", "the next")
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
            wait_until(lambda: daemon.status("odd")["state"] == "mounted", "it is taken over")
    check(seen, outliving)
    print(pauses(seen))


@root_only
def test_an_ordinary_user(open_folder: Path, odd_repository: OddRepository) -> None:
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
    wait_until(lambda: idle_daemon.status("odd")["state"] == "mounted", "the next worker")
    assert (mount / "README.md").read_bytes()
