"""A remote that is busy for a moment: what passes is tried again, everywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fast_import import quiet_git_environment
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import DaemonProcess
from tests.git.http_backend import Backend, http_backend


@pytest.fixture
def backend(tmp_path: Path, odd_repository: OddRepository) -> Iterator[Backend]:
    subprocess.run(
        ["git", "clone", "-q", "--mirror", odd_repository.path, tmp_path / "served/odd.git"],
        check=True,
        env=quiet_git_environment(),
    )
    for name in ("allowFilter", "allowAnySHA1InWant"):
        command = ["git", "-C", tmp_path / "served/odd.git", "config", f"uploadpack.{name}", "true"]
        subprocess.run(command, check=True)
    with http_backend(tmp_path / "served") as running:
        yield running


BUSY = ([503], [429, 503], [0, 0], [503, 0, 502])


@pytest.mark.parametrize("busy", BUSY, ids=str)
def test_a_remote_that_is_busy_for_a_moment(
    daemon: DaemonProcess, backend: Backend, busy: list[int]
) -> None:
    backend.busy = list(busy)
    mount = daemon.add_repo("odd", f"{backend.url}/odd.git", "--hydrate", "none")
    assert backend.busy == []
    daemon.wait_for("odd", "history")
    backend.busy = list(busy)
    daemon.run("fetch", "--name", "odd")
    assert backend.busy == []
    backend.busy = list(busy)
    subprocess.run(["cat", mount / ".gitattributes"], check=True, stdout=subprocess.DEVNULL)
    backend.busy = list(busy)
    daemon.run("switch", "topic", "--name", "odd")


def test_one_that_stays_busy_is_given_up(daemon: DaemonProcess, backend: Backend) -> None:
    backend.status = 503
    url = f"{backend.url}/odd.git"
    add = ("add-repo", "--name", "odd", "--remote", url, "--deadline", "8s")
    failed = daemon.run(*add, check=False)
    assert failed.returncode == 1
    assert "answered 503" in failed.stderr
    assert len(backend.seen) > 2
