"""A user walks through a mounted repository: everything is right, nothing is fetched twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fast_import import quiet_git_environment, run_git
from benchmarks.make_django_history import django_history
from tests.e2e.comparison import assert_same_tree, tree
from tests.e2e.delay_proxy import DelayProxy, Request
from tests.e2e.odd_repository import BIG_SIZE, OddRepository
from tests.e2e.processes import ArtifactsProcess, DaemonProcess, ServedRepository
from tests.e2e.test_history_on_its_way import is_history

READ_MAPPED = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sys.stdout.buffer.write(mapped[:])
"""


def git(where: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(where), *arguments],
        env=quiet_git_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def blobs_wanted(requests: list[Request], blobs: set[str]) -> list[str]:
    return [oid for request in requests for oid in request.wants if oid in blobs]


@pytest.fixture(scope="session")
def plain_clone(odd_repository: OddRepository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = tmp_path_factory.mktemp("plain") / "clone"
    run_git("clone", "--quiet", odd_repository.path, clone)
    return clone


def test_cold_mount_equals_plain_clone(mounted: Path, plain_clone: Path) -> None:
    assert assert_same_tree(mounted, plain_clone) > 350


def test_sizes_are_true_before_any_content_is_here(
    daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    plain_clone: Path,
    proxy: DelayProxy,
    odd_repository: OddRepository,
) -> None:
    expected = tree(plain_clone, content=False)
    proxy.hold(is_history)  # when it is here, the sizes of other branches are asked for
    try:
        mount = daemon.add_repo("odd", proxy.url(remote_repo().url))
        with proxy.recording() as requests:
            seen = tree(mount, content=False)
    finally:
        proxy.release()
    assert seen == expected
    # What git reads at every command is fetched for the index, not for `stat`.
    blobs = {oid for path, oid in odd_repository.blobs().items() if not path.startswith(".git")}
    assert not blobs_wanted(requests, blobs)
    assert len([request for request in requests if not is_history(request)]) <= 6


def test_cold_read_is_one_request_and_the_second_none(
    mounted: Path, proxy: DelayProxy, odd_repository: OddRepository, daemon: DaemonProcess
) -> None:
    daemon.wait_for("odd", "history")
    path = b"src/package3/module33.py"
    daemon.wait_for("odd", "sizes")
    with proxy.recording() as first:
        content = (mounted / os.fsdecode(path)).read_bytes()
    assert content == odd_repository.files[path]
    assert len([request for request in first if request.command == "fetch"]) == 1
    with open(mounted / os.fsdecode(path), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from the page cache
    with proxy.recording() as second:
        assert (mounted / os.fsdecode(path)).read_bytes() == content
    assert not second


def test_grep_over_a_cold_tree_takes_few_requests(
    mounted: Path, proxy: DelayProxy, daemon: DaemonProcess
) -> None:
    daemon.wait_for("odd", "sizes")
    with proxy.recording() as requests:
        found = subprocess.run(
            ["grep", "-rl", "edit", "src"], cwd=mounted, capture_output=True, text=True
        )
    assert len(found.stdout.splitlines()) == 59
    assert len(requests) <= 12


def test_git_works_in_the_mount(mounted: Path, odd_repository: OddRepository) -> None:
    assert len(git(mounted, "log", "--oneline").splitlines()) == odd_repository.commits
    assert git(mounted, "status", "--porcelain") == ""
    assert git(mounted, "diff") == ""
    assert git(mounted, "branch", "--show-current").strip() == "main"
    assert "Edit module 59" in git(mounted, "show", "--stat", "HEAD")
    assert git(mounted, "rev-parse", "HEAD^{tree}") == run_git(
        "-C", odd_repository.path, "rev-parse", "main^{tree}"
    )
    git(mounted, "fetch")
    assert "origin/topic" in git(mounted, "branch", "-r")


def test_git_diff_never_takes_files_for_deleted(mounted: Path, daemon: DaemonProcess) -> None:
    """A bug of git before 2.43 with any fsmonitor: one run in twenty, by chance."""
    daemon.wait_for("odd", "index")
    assert git(mounted, "status", "--porcelain") == ""
    for _ in range(60):
        assert git(mounted, "diff", "--name-only", "HEAD") == ""
        assert git(mounted, "diff-index", "HEAD") == ""


def test_git_status_asks_the_remote_for_nothing(
    daemon: DaemonProcess, proxy: DelayProxy, remote_repo: Callable[..., ServedRepository]
) -> None:
    mount = daemon.add_repo("odd", proxy.url(remote_repo().url), "--hydrate", "source")
    for state in ("history", "index", "hydrated", "sizes"):
        daemon.wait_for("odd", state)
    with proxy.recording() as requests:
        assert git(mount, "status", "--porcelain") == ""
        assert git(mount, "diff", "HEAD") == ""
    assert not requests


def test_programs_run_and_files_can_be_mapped(mounted: Path, odd_repository: OddRepository) -> None:
    # By a shell: until `exec` returns, Python holds the lock that the proxy's thread needs.
    command = ["sh", "-c", str(mounted / "run.sh")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "it runs\n"
    # A process of its own: a page that cannot be had is a SIGBUS.
    mapped = subprocess.run(
        [sys.executable, "-c", READ_MAPPED, str(mounted / "assets/big.bin")], capture_output=True
    )
    assert mapped.returncode == 0
    assert len(mapped.stdout) == BIG_SIZE
    assert mapped.stdout == odd_repository.files[b"assets/big.bin"]


def test_submodule_is_an_empty_directory(mounted: Path) -> None:
    assert (mounted / "vendor/sub").is_dir()
    assert os.listdir(mounted / "vendor/sub") == []


def test_another_branch_tag_and_commit_can_be_mounted(
    daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    odd_repository: OddRepository,
) -> None:
    served = remote_repo()
    commit = run_git("-C", odd_repository.path, "rev-parse", "main~5").strip()
    for name, option, wanted in (
        ("branch", ("--branch", "topic"), "topic"),
        ("tag", ("--ref", "v1"), "v1"),
        ("commit", ("--ref", commit), commit),
    ):
        mount = daemon.add_repo(name, served.url, *option)
        expected = run_git("-C", odd_repository.path, "rev-parse", f"{wanted}^{{commit}}")
        assert git(mount, "rev-parse", "HEAD") == expected
        assert git(mount, "status", "--porcelain") == ""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_django_equals_plain_clone(
    artifacts_server: ArtifactsProcess, proxy: DelayProxy, daemon: DaemonProcess, tmp_path: Path
) -> None:
    source = django_history()
    served = artifacts_server.create("django-reading", source)
    proxy.rtt = 0.05
    run_git("clone", "--quiet", source, tmp_path / "clone")
    mount = daemon.add_repo("django", proxy.url(served.url))
    expected = run_git("-C", source, "rev-list", "--count", "main").strip()
    assert len(git(mount, "log", "--oneline").splitlines()) == int(expected)
    with proxy.recording() as requests:
        assert_same_tree(mount, tmp_path / "clone", content=False)
    wanted = [request for request in requests if request.wants]
    assert not wanted, "stat of every file downloads blobs"
    print("requests for the sizes of all files:", len(requests))
    with proxy.recording() as requests:
        count = assert_same_tree(mount, tmp_path / "clone")
    print("requests for all content:", len(requests), "paths:", count)
