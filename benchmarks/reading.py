"""Measure what mounting and reading promise, each figure beside its limit.

    .venv/bin/python benchmarks/reading.py        # without delay, and with 50 ms of round trip
    .venv/bin/python benchmarks/reading.py --rtt 50 --only opening

The bundled server on a real socket serves the Django history through a proxy that adds the delay.
Figures are medians over the runs. A figure beyond its limit is marked; the exit status stays 0,
since a busy machine is no fault. Takes some five minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from benchmarks.contenders import SETTLED_S
from benchmarks.fast_import import quiet_git_environment, run_git
from benchmarks.make_django_history import DEFAULT_CACHE, django_history
from benchmarks.make_synthetic import synthetic_repository
from benchmarks.measures import (
    COLD_READS,
    PAUSE_S,
    ProxyProcess,
    Workload,
    fetch_in_one_batch,
    fetch_root_tree,
)
from tests.e2e.comparison import tree as compare_tree
from tests.e2e.mount_table import memory_kib
from tests.e2e.processes import (
    IMPATIENCE_S,
    ArtifactsProcess,
    DaemonProcess,
    ServedRepository,
    wait_until,
)

GREPPED_FILES = 1_000
GIT_FILES = (".gitattributes", ".gitignore")
SIZES = (1_000, 10_000, 100_000)


@dataclass(slots=True)
class Figures:
    """What came out for one round trip: name → (values, unit, limit). A limit is an upper one;
    None: told for information."""

    rtt_ms: float
    found: dict[str, tuple[list[float], str, float | None]] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, limit: float | None = None) -> None:
        self.found.setdefault(name, ([], unit, limit))[0].append(value)


@dataclass(slots=True)
class Bench:
    """The server with its repositories, and the figures so far."""

    server: ArtifactsProcess
    source: Path
    served: ServedRepository
    scratch: Path
    runs: int
    rtt_ms: float
    figures: Figures

    @contextmanager
    def proxy(self) -> Iterator[ProxyProcess]:
        proxy = ProxyProcess(f"127.0.0.1:{self.server.port}", self.rtt_ms)
        try:
            yield proxy
        finally:
            proxy.close()

    def through(self, proxy: ProxyProcess, served: ServedRepository | None = None) -> str:
        url = (served or self.served).url
        return url.replace(f"127.0.0.1:{self.server.port}", f"127.0.0.1:{proxy.port}")

    @contextmanager
    def daemon(self) -> Iterator[DaemonProcess]:
        directory = Path(tempfile.mkdtemp(prefix="d-", dir=self.scratch))
        daemon = DaemonProcess(directory, watched=False)
        try:
            daemon.start("--log-level", "warning")
            time.sleep(SETTLED_S)
            yield daemon
        finally:
            daemon.clean_up()
            shutil.rmtree(directory, ignore_errors=True)


def run_opening(bench: Bench) -> None:
    """From `add-repo` to the first listing and file, beside three kinds of clone."""
    commits = int(run_git("-C", bench.source, "rev-list", "--count", "HEAD"))
    young = bench.server.create(
        f"young-{bench.rtt_ms:g}", without_history(bench.source, bench.scratch)
    )
    clones = {"": 0.1, "--filter=blob:none": 0.2, "--depth=1": 1.0}
    for _ in range(bench.runs):
        listed, read, counted = open_once(bench, bench.served)
        bench.figures.add("add-repo to first ls", listed, "s", 1.0)
        bench.figures.add("add-repo to first ls and cat README", read, "s")
        bench.figures.add("commits that git log did not print", commits - counted, "", 0)
        bench.figures.add(
            "first ls, to that without history", listed / open_once(bench, young)[0], "x", 1.5
        )
        for option, limit in clones.items():
            took = clone_once(bench, option)
            name = f"git clone {option}".strip()
            bench.figures.add(name, took, "s")
            bench.figures.add(f"first ls and cat README, to {name}", read / took, "x", limit)


def without_history(source: Path, scratch: Path) -> Path:
    """A repository with the tip's tree in a single commit."""
    target = scratch / "young.git"
    if not target.exists():
        run_git("init", "--quiet", "--bare", "--initial-branch=main", target)
        run_git("-C", target, "fetch", "--quiet", "--depth=1", f"file://{source}", "HEAD")
        identity = ("-c", "user.name=b", "-c", "user.email=b@example.org")
        commit = run_git(
            "-C", target, *identity, "commit-tree", "-m", "One", "FETCH_HEAD^{tree}"
        ).strip()
        run_git("-C", target, "update-ref", "refs/heads/main", commit)
    return target


def open_once(bench: Bench, served: ServedRepository) -> tuple[float, float, int]:
    """Seconds until the first `ls`, until README is read too, and the lines of `git log`."""
    with bench.proxy() as proxy, bench.daemon() as daemon:
        url = bench.through(proxy, served)
        began = time.perf_counter()
        mount = daemon.add_repo("bench", url)
        os.listdir(mount)
        listed = time.perf_counter() - began
        (mount / "README.rst").read_bytes()
        read = time.perf_counter() - began
        log = run_git("-C", mount, "log", "--oneline")
    return listed, read, len(log.splitlines())


def clone_once(bench: Bench, option: str) -> float:
    target = bench.scratch / "clone"
    with bench.proxy() as proxy:
        began = time.perf_counter()
        run_git("clone", "--quiet", *filter(None, [option]), bench.through(proxy), target)
        took = time.perf_counter() - began
    shutil.rmtree(target)
    return took


def run_reads(bench: Bench) -> None:
    """Cold and second reads of single files, each in another directory."""
    for _ in range(bench.runs):
        with bench.proxy() as proxy, bench.daemon() as daemon:
            mount = daemon.add_repo("bench", bench.through(proxy))
            daemon.wait_for("bench", "history")
            daemon.wait_for("bench", "index")
            paths = one_file_in_each_directory(bench.source)
            times = []
            for path in paths:
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                (mount / path).read_bytes()
                times.append(time.perf_counter() - began)
            over = statistics.median(times) * 1_000 - bench.rtt_ms
            bench.figures.add("cold read of one file, beyond one round trip", over, "ms", 15)
            time.sleep(2 * PAUSE_S)
            before = proxy.traffic()[0]
            for path in paths:
                (mount / path).read_bytes()
            after = proxy.traffic()[0]
            bench.figures.add("requests for reading them again", after - before, "", 0)


def one_file_in_each_directory(source: Path) -> list[str]:
    """30 paths whose blobs no two of them share."""
    blobs: dict[str, list[str]] = {}
    for line in ls_tree(source):
        description, _, path = line.partition("\t")
        blobs.setdefault(description.split()[2], []).append(path)
    chosen: dict[str, str] = {}
    for paths in blobs.values():
        directory = os.path.dirname(paths[0])
        if len(paths) == 1 and directory:
            chosen.setdefault(directory, paths[0])
    found = sorted(chosen.values())
    return found[:: max(1, len(found) // COLD_READS)][:COLD_READS]


def run_grep(bench: Bench) -> None:
    """A cold `grep -r` of some 1,000 files, beside `git fetch` of the same blobs in one batch."""
    directory, count = directory_of(bench.source, GREPPED_FILES)
    workload = Workload("", bench.source, "README.rst", directory, "", "")
    bench.figures.add(f"files of the cold grep -r ({directory})", count, "")
    for _ in range(bench.runs):
        with bench.proxy() as proxy, bench.daemon() as daemon:
            mount = daemon.add_repo("bench", bench.through(proxy))
            daemon.wait_for("bench", "history")
            daemon.wait_for("bench", "index")
            before = proxy.traffic()[0]
            began = time.perf_counter()
            subprocess.run(["grep", "-r", "zzzabsent", directory], cwd=mount, check=False)
            took = time.perf_counter() - began
            bench.figures.add("cold grep -r", took, "s")
            requests = proxy.traffic()[0] - before
            bench.figures.add("requests of the cold grep -r", requests, "", 12)
            batch = fetch_in_one_batch(bench.through(proxy), bench.scratch / "batch", workload)
            bench.figures.add("git fetch of the same blobs", batch, "s")
            bench.figures.add("cold grep -r, to that", took / batch, "x", 3)


def directory_of(source: Path, count: int) -> tuple[str, int]:
    """The smallest directory with at least `count` files, and how many it has."""
    counts: dict[str, int] = {}
    for line in ls_tree(source):
        path = line.partition("\t")[2]
        while path := os.path.dirname(path):
            counts[path] = counts.get(path, 0) + 1
    return min((item for item in counts.items() if item[1] >= count), key=lambda item: item[1])


def run_whole(bench: Bench) -> None:
    """Every `stat` and every byte beside a plain clone, and what the worker weighs."""
    clone = bench.scratch / "plain"
    run_git("clone", "--quiet", bench.served.url, clone)
    blobs = {line.split()[2] for line in ls_tree(bench.source)}
    with bench.proxy() as proxy, bench.daemon() as daemon:
        mount = daemon.add_repo("bench", bench.through(proxy))
        # The root's README and manifests come with the mount.
        before = len(proxy.requests())
        wrong = differences(compare_tree(mount, content=False), compare_tree(clone, content=False))
        asked = [oid for _, wants in proxy.requests()[before:] for oid in wants if oid in blobs]
        daemon.wait_for("bench", "history")
        time.sleep(SETTLED_S)
        worker = daemon.worker(mount)
        bench.figures.add("files whose stat differs from a clone's", wrong, "", 0)
        # The size of a file is not told before it is known that git would convert it.
        attributes = sum(line.endswith(GIT_FILES) for line in ls_tree(bench.source))
        bench.figures.add("blobs asked for by every stat", len(asked), "", attributes)
        bench.figures.add("RSS of the idle worker", memory_kib(worker) / 1024, "MB", 60)
        wrong = differences(compare_tree(mount), compare_tree(clone))
        bench.figures.add("files that differ from a clone's", wrong, "", 0)
        bench.figures.add("RSS after serving everything", memory_kib(worker) / 1024, "MB", 120)
        before = len(proxy.requests())
        fork = bench.server.fork(bench.served.name, f"fork-{bench.rtt_ms:g}")
        for name, served in (("same", bench.served), ("fork", fork)):
            other = daemon.add_repo(name, bench.through(proxy, served))
            wrong = differences(compare_tree(other), compare_tree(clone))
            bench.figures.add(f"files that differ in a second mount ({name})", wrong, "", 0)
        asked = [oid for _, wants in proxy.requests()[before:] for oid in wants if oid in blobs]
        bench.figures.add("blobs downloaded for both of them", len(asked), "", 0)
    shutil.rmtree(clone)


def ls_tree(source: Path) -> list[str]:
    """Mode, type, oid, tab and path of every file."""
    return run_git("-C", source, "ls-tree", "-r", "-z", "HEAD").split("\0")[:-1]


def differences(one: Mapping[bytes, object], other: Mapping[bytes, object]) -> int:
    return sum(one.get(path) != other.get(path) for path in one.keys() | other.keys())


def run_hydration(bench: Bench) -> None:
    """Everything in the background, beside one raw fetch of the root tree."""
    for _ in range(bench.runs):
        with bench.proxy() as proxy, bench.daemon() as daemon:
            raw = fetch_root_tree(bench.through(proxy), bench.source)
            bench.figures.add("one-want fetch of the root tree", raw, "s")
            mount = daemon.add_repo("bench", bench.through(proxy), "--hydrate", "none")
            daemon.wait_for("bench", "history")
            daemon.wait_for("bench", "index")
            time.sleep(SETTLED_S)
            began = time.perf_counter()
            command = ("prefetch", "--name", mount.name, "--wait")
            daemon.run(*command, timeout=300)
            took = time.perf_counter() - began
            bench.figures.add("full hydration", took, "s")
            bench.figures.add("full hydration, to that", took / raw, "x", 1.5)


def run_outages(bench: Bench) -> None:
    """The remote is killed and comes back; worker and daemon are killed."""
    with bench.proxy() as proxy, bench.daemon() as daemon:
        options = ("--deadline", f"{IMPATIENCE_S}s")
        mount = daemon.add_repo("bench", bench.through(proxy), *options)
        daemon.wait_for("bench", "history")
        daemon.wait_for("bench", "index")
        first, second, *_ = one_file_in_each_directory(bench.source)[10:]
        here = (mount / "README.rst").read_bytes()
        proxy.refuse()
        took, code = failing_read(mount / first)
        bench.figures.add("read of what is absent, remote killed", took, "s", IMPATIENCE_S + 0.5)
        told = code in (errno.EIO, errno.ETIMEDOUT)
        bench.figures.add("reads that did not end with EIO or ETIMEDOUT", not told, "", 0)
        began = time.perf_counter()
        listed = bool(os.listdir(mount / "tests")) and (mount / "README.rst").read_bytes() == here
        bench.figures.add("ls and read of what is here meanwhile", elapsed_ms(began), "ms", 100)
        proxy.accept()
        began = time.perf_counter()
        listed &= bool((mount / second).read_bytes())
        bench.figures.add("first read when it is back", elapsed_ms(began), "ms")
        assert listed
        for _ in range(bench.runs):
            os.kill(daemon.worker(mount), signal.SIGKILL)
            began = time.perf_counter()
            wait_until(lambda: answers(mount), "the mount", deadline=60)
            bench.figures.add("mounted again after a killed worker", elapsed_s(began), "s", 3)
        daemon.kill()
        began = time.perf_counter()
        daemon.start("--log-level", "warning")
        wait_until(lambda: answers(mount), "the mount", deadline=60)
        bench.figures.add("mounted again after a killed daemon", elapsed_s(began), "s")


def elapsed_s(began: float) -> float:
    return time.perf_counter() - began


def elapsed_ms(began: float) -> float:
    return elapsed_s(began) * 1_000


def failing_read(path: Path) -> tuple[float, int]:
    """Seconds until a read fails, and its errno; 0 where it does not fail."""
    began = time.perf_counter()
    try:
        path.read_bytes()
    except OSError as error:
        return elapsed_s(began), error.errno or 0
    return elapsed_s(began), 0


def answers(mount: Path) -> bool:
    """Asks for more than a listing, which the kernel keeps beyond the death of a worker."""
    with contextlib.suppress(OSError):
        os.statvfs(mount)
        return bool((mount / "README.rst").read_bytes())
    return False


def run_sizes(bench: Bench) -> None:
    """Mounting trees of different sizes."""
    first: dict[str, list[float]] = {"first ls": [], "RSS": []}
    for count in SIZES:
        served = bench.server.create(
            f"files-{count}-{bench.rtt_ms:g}", synthetic_repository(count, DEFAULT_CACHE)
        )
        times, weights = [], []
        for _ in range(bench.runs):
            with bench.proxy() as proxy, bench.daemon() as daemon:
                url = bench.through(proxy, served)
                began = time.perf_counter()
                mount = daemon.add_repo("bench", url)
                os.listdir(mount)
                times.append(elapsed_s(began))
                weights.append(memory_kib(daemon.worker(mount)) / 1024)
        for name, values, unit in (("first ls", times, "s"), ("RSS", weights, "MB")):
            first[name].append(statistics.median(values))
            figure = f"{name}, {count:,} files"
            limit = None if len(first[name]) == 1 else 1.5 * first[name][0]
            bench.figures.add(figure, first[name][-1], unit, limit)


PARTS: dict[str, Callable[[Bench], None]] = {
    "opening": run_opening,
    "reads": run_reads,
    "grep": run_grep,
    "whole": run_whole,
    "hydration": run_hydration,
    "outages": run_outages,
    "sizes": run_sizes,
}


def print_figures(all_figures: list[Figures]) -> None:
    table = Table(title="Mounting and reading", title_justify="left")
    table.add_column("figure")
    for figures in all_figures:
        table.add_column(f"{figures.rtt_ms:g} ms of round trip", justify="right")
    table.add_column("limit", justify="right")
    names = dict.fromkeys(name for figures in all_figures for name in figures.found)
    for name in names:
        cells, limit_text = [], ""
        for figures in all_figures:
            values, unit, limit = figures.found.get(name, ([], "", None))
            cells.append(shown(values, unit, limit))
            limit_text = f"{limit:.3g} {unit}".strip() if limit is not None else limit_text
        table.add_row(name, *cells, limit_text)
    Console(width=140).print(table)


def shown(values: list[float], unit: str, limit: float | None) -> str:
    if not values:
        return "-"
    median = statistics.median(values)
    text = f"{median:.0f}" if not unit or median >= 1_000 else f"{median:.3g} {unit}"
    return text if limit is None or median <= limit else f"{text} [bold red]beyond[/]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rtt", default="0,50", metavar="MS,…", help="(default: 0,50)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is stopped
    os.environ |= quiet_git_environment()
    scratch = Path(tempfile.mkdtemp(prefix="afr-", dir="/tmp"))
    server = ArtifactsProcess(scratch / "server")
    server.start()
    all_figures: list[Figures] = []
    try:
        source = django_history(DEFAULT_CACHE)
        served = server.create("django", source)
        for rtt_ms in map(float, options.rtt.split(",")):
            all_figures.append(Figures(rtt_ms))
            bench = Bench(server, source, served, scratch, options.runs, rtt_ms, all_figures[-1])
            for name in options.only or PARTS:
                print(f"{rtt_ms:g} ms: {name}", file=sys.stderr)
                PARTS[name](bench)
    finally:
        server.stop()
        shutil.rmtree(scratch, ignore_errors=True)
        print_figures(all_figures)


if __name__ == "__main__":
    main()
