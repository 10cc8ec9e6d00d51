"""Mounts under one state root share every blob."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.e2e.comparison import tree
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import ArtifactsProcess, DaemonProcess, ServedRepository


def wants_of_contents(proxy: DelayProxy, first: int, repository: OddRepository) -> set[str]:
    """Return the wanted blobs of the requests from number `first` on."""
    blobs = set(repository.blobs().values())
    return {oid for request in proxy.requests[first:] for oid in request.wants} & blobs


def read_everything(mount: Path) -> int:
    return len(tree(mount))


def test_second_mount_downloads_no_blob(
    mounted: Path,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
    odd_repository: OddRepository,
) -> None:
    count = read_everything(mounted)
    first = len(proxy.requests)
    second = daemon.add_repo("again", proxy.url(remote_repo().url))
    assert read_everything(second) == count
    assert not wants_of_contents(proxy, first, odd_repository)


def test_mount_of_a_fork_downloads_no_blob(
    daemon: DaemonProcess,
    proxy: DelayProxy,
    artifacts_server: ArtifactsProcess,
    remote_repo: Callable[..., ServedRepository],
    odd_repository: OddRepository,
) -> None:
    parent = remote_repo()
    count = read_everything(daemon.add_repo("parent", proxy.url(parent.url)))
    fork = artifacts_server.fork(parent.name, f"{parent.name}-fork")
    first = len(proxy.requests)
    mount = daemon.add_repo("fork", proxy.url(fork.url))
    assert read_everything(mount) == count
    assert not wants_of_contents(proxy, first, odd_repository)
