"""A large tree right after the mount: its root is there, and what is below waits until it is."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.delay_proxy import DelayProxy, Request
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import IMPATIENCE_S, DaemonProcess, ServedRepository, wait_until
from tests.git.http_backend import http_backend

DEADLINE = 60.0
KINDS = ["fuse", pytest.param("kernel", marks=pytest.mark.skipif(os.getuid() != 0, reason="root"))]


def is_whole_tip(request: Request) -> bool:
    """Whether a request is for a commit with all of its trees."""
    return b"deepen 1" in request.text and b"filter blob:none" in request.text


def is_root_alone(request: Request) -> bool:
    return b"filter tree:1" in request.text


@contextmanager
def held_back(daemon: DaemonProcess, proxy: DelayProxy, url: str, *options: str) -> Iterator[Path]:
    proxy.hold(is_whole_tip)
    try:
        yield daemon.add_repo("early", proxy.url(url), *options)
    finally:
        proxy.release()


@pytest.fixture(params=KINDS)
def early(
    request: pytest.FixtureRequest,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
) -> Iterator[Path]:
    """A mount of the odd repository, of which only the root tree comes until `proxy.release`."""
    with held_back(daemon, proxy, remote_repo().url, "--writes", request.param) as mount:
        yield mount


@pytest.fixture(params=KINDS)
def early_and_impatient(
    request: pytest.FixtureRequest,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
) -> Iterator[Path]:
    """The same, whose requests give up after `IMPATIENCE_S`."""
    options = ("--writes", request.param, "--deadline", str(IMPATIENCE_S))
    with held_back(daemon, proxy, remote_repo().url, *options) as mount:
        yield mount


def start(directory: Path, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_waiting(daemon: DaemonProcess) -> None:
    """Until a request of the mount has no answer."""
    wait_until(lambda: daemon.told("early")["kernel"]["oldest"], "a request that waits")


def ends(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output + errors


def names_of_root(repository: OddRepository) -> set[bytes]:
    listed = subprocess.run(
        ["git", "-C", repository.path, "ls-tree", "-z", "--name-only", "main"],
        check=True,
        capture_output=True,
    )
    return set(listed.stdout.split(b"\0")[:-1])


def test_the_root_is_there_at_once(early: Path, odd_repository: OddRepository) -> None:
    names = set(os.listdir(os.fsencode(early))) - {b".git", b".artifact-fs"}
    assert names == names_of_root(odd_repository)
    for path, content in odd_repository.files.items():
        if b"/" not in path:
            assert (early / os.fsdecode(path)).stat().st_size == len(content)
            assert (early / os.fsdecode(path)).read_bytes() == content
    assert os.readlink(early / "link") == "README.md"
    assert not (early / "no such name").exists()
    assert os.access(early / "run.sh", os.X_OK)
    folder = (early / "src").stat()
    assert stat.S_ISDIR(folder.st_mode)
    assert folder.st_nlink == 1  # not known


def test_what_is_below_waits_for_its_trees(
    early: Path, daemon: DaemonProcess, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    found = start(early, "find", "src", "-type", "f")
    wait_for_waiting(daemon)
    status = start(early, "git", "status", "--porcelain")
    made = start(early / "assets", "touch", "made")
    assert found.poll() is None

    proxy.release()

    inside = {b"src/" + path[4:] for path in odd_repository.files if path.startswith(b"src/")}
    code, output = ends(found)
    assert code == 0
    assert inside <= set(output.splitlines())
    assert ends(made) == (0, b"")
    assert ends(status)[0] == 0
    folders = [name for name in os.listdir(early / "src") if (early / "src" / name).is_dir()]
    if daemon.status("early")["writes"]["kind"] != "kernel":
        assert (early / "src").stat().st_nlink == 2 + len(folders)
    changed = start(early, "git", "status", "--porcelain", "-uall")
    assert ends(changed) == (0, b"?? assets/made\n")
    assert ends(start(early, "git", "fsck", "--connectivity-only"))[0] == 0
    tips = [request for request in proxy.requests if is_whole_tip(request)]
    assert len(tips) == 1, "the trees came from the request that was on its way"


def test_who_waits_can_be_killed(early: Path, daemon: DaemonProcess) -> None:
    waiting = start(early, "ls", "src")
    wait_for_waiting(daemon)
    waiting.kill()
    assert ends(waiting)[0] == -signal.SIGKILL


def test_commands_about_the_tree_wait_for_it(
    early: Path, daemon: DaemonProcess, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    prefetched = threading.Thread(
        target=lambda: daemon.run("prefetch", "--name", "early", "--wait", "src")
    )
    prefetched.start()
    assert daemon.status("early")["state"] == "mounted"
    assert prefetched.is_alive()
    proxy.release()
    prefetched.join(DEADLINE)
    assert not prefetched.is_alive()
    blobs = {oid for path, oid in odd_repository.blobs().items() if path.startswith("src/")}
    wanted = {oid for request in proxy.requests for oid in request.wants}
    assert blobs <= wanted | {odd_repository.oid("src")}


def test_it_fails_where_the_remote_goes_away_and_comes_when_it_is_back(
    early_and_impatient: Path, daemon: DaemonProcess, proxy: DelayProxy
) -> None:
    early = early_and_impatient
    proxy.refuse()
    with pytest.raises(OSError) as raised:
        os.listdir(early / "src")
    assert raised.value.errno == errno.ETIMEDOUT
    assert (early / "README.md").stat().st_size > 0
    proxy.release()
    proxy.accept()
    daemon.wait_for("early", "index")
    assert os.listdir(early / "src")


def test_a_worker_that_is_killed_meanwhile_leaves_a_whole_mount(
    early: Path, daemon: DaemonProcess, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    os.kill(daemon.worker(early), signal.SIGKILL)
    proxy.release()
    wait_until(lambda: daemon.status("early").get("history_complete"), "another worker")
    daemon.wait_for("early", "index")
    for path, content in odd_repository.files.items():
        assert (early / os.fsdecode(path)).read_bytes() == content
    assert ends(start(early, "git", "status", "--porcelain")) == (0, b"")


def test_it_can_be_unmounted_and_removed_meanwhile(early: Path, daemon: DaemonProcess) -> None:
    daemon.run("unmount", "--name", "early")
    assert not os.path.ismount(early)
    daemon.run("remove-repo", "--name", "early", "--force")
    assert not (daemon.state / "repos" / "early").exists()


def test_a_remote_that_sends_no_root_tree_alone_sends_everything(
    daemon: DaemonProcess, odd_repository: OddRepository, tmp_path: Path
) -> None:
    bare = tmp_path / "odd.git"
    subprocess.run(["git", "clone", "-q", "--bare", odd_repository.path, bare], check=True)
    for name, value in (
        ("uploadpack.allowFilter", "true"),
        ("uploadpack.allowAnySHA1InWant", "true"),
        ("uploadpackfilter.tree.maxDepth", "0"),
    ):
        subprocess.run(["git", "-C", bare, "config", name, value], check=True)
    with http_backend(tmp_path) as backend, DelayProxy(("127.0.0.1", backend.port)) as proxy:
        proxy.hold(is_whole_tip)
        url = f"http://127.0.0.1:{proxy.port}/odd.git"
        adding = threading.Thread(target=lambda: daemon.add_repo("whole", url))
        adding.start()
        wait_until(lambda: any(map(is_root_alone, proxy.requests)), "the root was asked for")
        proxy.release()
        adding.join(DEADLINE)
        assert not adding.is_alive()
        mount = daemon.mounts / "whole"
        for path, content in odd_repository.files.items():
            assert (mount / os.fsdecode(path)).read_bytes() == content
