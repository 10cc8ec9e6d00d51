"""Repositories that are large in one way: a folder, a chain of folders, branches, commits.

Each is what git has, and takes a number of requests that does not grow with it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.make_synthetic import shaped_repository
from tests.e2e.processes import DaemonProcess
from tests.git.http_backend import Backend, http_backend

HISTORY_S = 300.0


def git(directory: Path, *arguments: str) -> str:
    run = ["git", "-C", str(directory), *arguments]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


@contextmanager
def mounted(daemon: DaemonProcess, repository: Path) -> Iterator[tuple[Path, Backend]]:
    """`repository` with its index and all of its history."""
    with http_backend(repository.parent) as backend:
        mount = daemon.add_repo("shape", f"{backend.url}/{repository.name}")
        daemon.wait_for("shape", "index", timeout=HISTORY_S)
        daemon.wait_for("shape", "history", timeout=HISTORY_S)
        yield mount, backend


def kernel_requests(daemon: DaemonProcess) -> int:
    """How many requests the kernel has sent to the mount."""
    counted: dict[str, int] = daemon.status("shape")["kernel"]["requests"]
    return sum(counted.values())


def test_ten_thousand_files_in_one_folder(daemon: DaemonProcess, tmp_path: Path) -> None:
    repository = shaped_repository("flat", tmp_path)
    with mounted(daemon, repository) as (mount, backend):
        expected = git(repository, "ls-tree", "--name-only", "main:folder").splitlines()
        before = kernel_requests(daemon)
        listed = [entry.name for entry in os.scandir(mount / "folder")]
        assert sorted(listed) == sorted(expected)
        sizes = {name: (mount / "folder" / name).stat().st_size for name in expected}
        assert sizes["file7.py"] == len("line = 7\n")
        assert sizes["file9999.py"] == len("line = 9999\n")
        assert kernel_requests(daemon) - before < 1_000  # some buffers of a listing, no look-ups
        assert git(mount, "status", "--porcelain") == ""
        asked = len(backend.seen)
        content = b"".join((mount / "folder" / name).read_bytes() for name in sorted(expected))
        assert content == b"".join(
            b"line = %d\n" % int(name.removeprefix("file").removesuffix(".py"))
            for name in sorted(expected)
        )
        assert len(backend.seen) - asked < 100
        (mount / "folder" / "file5.py").write_text("other\n")
        (mount / "folder" / "new.py").write_text("new\n")
        changed = git(mount, "status", "--porcelain").splitlines()
        assert changed == [" M folder/file5.py", "?? folder/new.py"]


def test_five_hundred_folders_in_each_other(daemon: DaemonProcess, tmp_path: Path) -> None:
    repository = shaped_repository("deep", tmp_path)
    with mounted(daemon, repository) as (mount, backend):
        asked = len(backend.seen)
        found = [place for place, _, files in os.walk(mount) if "file" in files]
        assert [place.count("/d") for place in found] == [str(mount).count("/d") + 500]
        assert (Path(found[0]) / "file").read_bytes() == b"deep\n"
        assert len(backend.seen) - asked < 10
        assert git(mount, "status", "--porcelain") == ""
        (Path(found[0]) / "new").write_text("new\n")
        assert git(mount, "status", "--porcelain").splitlines() == [f"?? {'d/' * 500}new"]


@pytest.mark.long
def test_fifty_thousand_branches(daemon: DaemonProcess, tmp_path: Path) -> None:
    repository = shaped_repository("refs", tmp_path)
    with mounted(daemon, repository) as (mount, backend):
        branches = git(mount, "for-each-ref", "--format=%(refname)", "refs/remotes").splitlines()
        assert len(branches) == 50_002  # main and the remote's HEAD among them
        asked = len(backend.seen)
        daemon.run("fetch", "--name", "shape")
        assert len(backend.seen) - asked <= 3
        assert git(mount, "status", "--porcelain") == ""
        git(repository, "branch", "topic/new", "main")
        git(repository, "branch", "-D", "topic/7/7")
        daemon.run("fetch", "--name", "shape")
        now = git(mount, "for-each-ref", "--format=%(refname)", "refs/remotes").splitlines()
        assert set(now) ^ set(branches) == {
            "refs/remotes/origin/topic/new",
            "refs/remotes/origin/topic/7/7",
        }


@pytest.mark.long
def test_half_a_million_commits(daemon: DaemonProcess, tmp_path: Path) -> None:
    repository = shaped_repository("commits", tmp_path)
    with mounted(daemon, repository) as (mount, backend):
        assert git(mount, "rev-list", "--count", "HEAD").strip() == "500001"
        assert git(mount, "log", "-1", "--format=%s", "HEAD~400000").strip() == "Commit 99999"
        assert len(backend.seen) < 40
        assert git(mount, "status", "--porcelain") == ""
