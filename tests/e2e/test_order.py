"""What arrives first when the line is slow: what people need first."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fast_import import FILE, FastImport, run_git
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until

MANIFESTS = (b"package.json", b"web/package-lock.json", b"pyproject.toml", b"lib/Cargo.toml")
BINARIES = tuple(b"assets/picture%d.png" % number for number in range(6))
SOURCES = tuple(b"src/part%d/module%d.py" % (number % 8, number) for number in range(400))


def kind_of(path: bytes) -> str:
    if path in MANIFESTS:
        return "manifest"
    return "binary" if path in BINARIES else "source"


@pytest.fixture
def mixed_repository(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A repository of manifests, sources and binaries, and what kind each blob is of."""
    rng = random.Random(3)
    target = tmp_path / "mixed.git"
    with FastImport(target) as stream:
        files = {}
        for path in (*MANIFESTS, *SOURCES, *BINARIES):
            size = 200_000 if path in BINARIES else 1_500
            files[path] = (FILE, stream.blob(path + b"\n" + rng.randbytes(size)))
        stream.commit("Start\n", files)
    kinds = {}
    for line in run_git("-C", target, "ls-tree", "-r", "main").splitlines():
        description, _, name = line.partition("\t")
        kinds[description.split()[2]] = kind_of(name.encode())
    return target, kinds


def kinds_in_order(proxy: DelayProxy, kinds: dict[str, str]) -> list[str]:
    return [kinds[oid] for request in proxy.requests for oid in request.wants if oid in kinds]


def test_manifests_then_source_then_binaries(
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
    mixed_repository: tuple[Path, dict[str, str]],
) -> None:
    source, kinds = mixed_repository
    proxy.rtt = 0.03
    daemon.add_repo("mixed", proxy.url(remote_repo(source).url), "--hydrate", "all")
    daemon.wait_for("mixed", "hydrated")
    order = kinds_in_order(proxy, kinds)
    assert set(order) == {"manifest", "source", "binary"}
    last_manifest = max(at for at, kind in enumerate(order) if kind == "manifest")
    first_source = order.index("source")
    last_source = max(at for at, kind in enumerate(order) if kind == "source")
    first_binary = order.index("binary")
    assert last_manifest < first_source < last_source < first_binary


def test_explicit_read_of_a_binary_overtakes_the_sweep(
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
    mixed_repository: tuple[Path, dict[str, str]],
) -> None:
    source, kinds = mixed_repository
    proxy.rtt = 0.1
    proxy.bandwidth = 150_000
    mount = daemon.add_repo("mixed", proxy.url(remote_repo(source).url), "--hydrate", "all")
    wait_until(lambda: "source" in kinds_in_order(proxy, kinds), "the sweep")
    content = (mount / "assets/picture5.png").read_bytes()
    assert len(content) > 200_000
    order = kinds_in_order(proxy, kinds)
    status = daemon.status("mixed")
    assert "binary" in order
    assert status["hydration"]["blobs_here"] < len(kinds), "the sweep was done before"
