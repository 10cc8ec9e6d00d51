"""What a worker weighs, idle and after it served everything."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.make_django_history import django_history
from benchmarks.make_synthetic import lines_repository
from tests.e2e.comparison import tree
from tests.e2e.mount_table import memory_kib
from tests.e2e.processes import ArtifactsProcess, DaemonProcess

IDLE_LIMIT_KIB = 60 << 10
SERVED_LIMIT_KIB = 120 << 10


@pytest.mark.long
@pytest.mark.timeout(600)
def test_worker_that_served_a_large_tree(
    artifacts_server: ArtifactsProcess, daemon: DaemonProcess
) -> None:
    served = artifacts_server.create("django-memory", django_history())
    mount = daemon.add_repo("django", served.url)
    daemon.wait_for("django", "history")
    worker = daemon.worker(mount)
    idle = memory_kib(worker)
    assert len(tree(mount)) > 6_500
    assert daemon.worker(mount) == worker
    full, peak, share = (memory_kib(worker, key) for key in ("VmRSS", "VmHWM", "Pss"))
    print(f"idle {idle} KiB, served {full} KiB (PSS {share}), peak {peak} KiB")
    assert idle < IDLE_LIMIT_KIB
    assert full < SERVED_LIMIT_KIB


@pytest.mark.long
@pytest.mark.timeout(600)
def test_worker_that_listed_many_files(
    artifacts_server: ArtifactsProcess, daemon: DaemonProcess
) -> None:
    """What is listed costs next to nothing: an inode of 400 bytes for each would be 40 MB."""
    served = artifacts_server.create("many-memory", lines_repository(100_000))
    mount = daemon.add_repo("many", served.url)
    daemon.wait_for("many", "index", timeout=300)
    worker = daemon.worker(mount)
    idle = memory_kib(worker)
    subprocess.run(["find", "."], cwd=mount, stdout=subprocess.DEVNULL, check=True)
    full = memory_kib(worker)
    print(f"idle {idle} KiB, listed {full} KiB")
    assert full - idle < 12 << 10
    assert full < 90 << 10
