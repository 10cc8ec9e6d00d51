"""What grows with the tree: the same steps with 1,000 files and with a million, a clone beside it.

Every file is one line and a blob of its own, 20 files a directory. The daemon runs already, the
server is the bundled one on this machine, without a delay. scripts/benchmark --scale --help
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contenders import run_to_the_end
from benchmarks.fast_import import quiet_git_environment
from benchmarks.make_django_history import DEFAULT_CACHE
from benchmarks.make_synthetic import SHAPES, lines_repository, shaped_repository
from benchmarks.measures import fetch_root_tree
from tests.e2e.mount_table import memory_kib
from tests.e2e.processes import ArtifactsProcess, DaemonProcess, wait_until
from tests.git.http_backend import http_backend

TICKS = os.sysconf("SC_CLK_TCK")
INDEX_DEADLINE_S = 400.0
SETTLED_S = 3.0
"""After the index is there and everything is idle."""


@dataclass(slots=True)
class Figures:
    """Of one repository; seconds, or MB."""

    name: str
    values: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, step: Callable[[], object], pid: int | None = None) -> None:
        """Wall time of `step`, and beside it what the worker `pid` used of a CPU."""
        before, began = cpu_s(pid), time.perf_counter()
        step()
        self.values[name] = time.perf_counter() - began
        if pid is not None:
            self.values[f"{name}, worker's CPU"] = cpu_s(pid) - before


def cpu_s(pid: int | None) -> float:
    """User and system time of a process so far."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def command(directory: Path, *arguments: str) -> None:
    status = run_to_the_end(arguments, env=quiet_git_environment(), cwd=directory)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} failed in {directory}")


def in_tree(figures: Figures, prefix: str, tree: Path, pid: int | None) -> None:
    """What is done in a working tree, mounted or cloned."""

    def step(name: str, *arguments: str) -> None:
        figures.timed(prefix + name, lambda: command(tree, *arguments), pid)

    step("first git status", "git", "status")
    step("next git status", "git", "status")
    step("first find", "find", ".")
    if pid is not None:
        figures.values["RSS after the find, MB"] = memory_kib(pid) / 1024
        figures.values["PSS after the find, MB"] = memory_kib(pid, "Pss") / 1024
    step("second find", "find", ".")
    (tree / "README.md").write_text("changed\n")
    step("git status after a change", "git", "status")
    step("first ls -lR", "ls", "-lR", ".")
    step("second ls -lR", "ls", "-lR", ".")
    if pid is not None:
        figures.values["RSS at the end, MB"] = memory_kib(pid) / 1024


def measure_mount(figures: Figures, url: str, scratch: Path) -> None:
    daemon = DaemonProcess(scratch, watched=False)
    daemon.start()
    try:
        time.sleep(2)  # it has loaded all its modules then
        began = time.perf_counter()
        figures.timed("add-repo", lambda: daemon.add_repo("big", url))
        tree = daemon.mounts / "big"
        figures.timed("first ls", lambda: command(tree, "ls"))
        worker = daemon.worker(tree)
        figures.timed("status of the command line", lambda: daemon.run("status"))
        daemon.wait_for("big", "index", timeout=INDEX_DEADLINE_S)
        figures.values["index primed after"] = time.perf_counter() - began
        daemon.wait_for("big", "history", timeout=INDEX_DEADLINE_S)
        settle(worker)
        figures.values["worker's CPU until idle"] = cpu_s(worker)
        figures.values["RSS idle, MB"] = memory_kib(worker) / 1024
        figures.values["PSS idle, MB"] = memory_kib(worker, "Pss") / 1024
        figures.values["peak until idle, MB"] = memory_kib(worker, "VmHWM") / 1024
        in_tree(figures, "", tree, worker)
        figures.timed("status of the command line, at the end", lambda: daemon.run("status"))
    finally:
        daemon.clean_up()


def settle(pid: int) -> None:
    """Wait until the process has nothing to do."""

    def idle() -> bool:
        before = cpu_s(pid)
        time.sleep(SETTLED_S)
        return cpu_s(pid) - before < 0.1

    wait_until(idle, "an idle worker", deadline=INDEX_DEADLINE_S)


def measure_hydration(figures: Figures, url: str, source: Path, scratch: Path) -> None:
    figures.values["raw fetch of the root tree"] = fetch_root_tree(url, source)
    daemon = DaemonProcess(scratch, watched=False)
    daemon.start()
    try:
        tree = daemon.add_repo("big", url)
        worker = daemon.worker(tree)
        daemon.wait_for("big", "index", timeout=INDEX_DEADLINE_S)
        daemon.wait_for("big", "history", timeout=INDEX_DEADLINE_S)
        settle(worker)
        fetch = lambda: daemon.run("prefetch", "--name", "big", "--wait", timeout=900)  # noqa: E731
        figures.timed("hydration of everything", fetch, worker)
        figures.values["RSS after the hydration, MB"] = memory_kib(worker) / 1024
        figures.values["requests of the hydration"] = daemon.status("big")["hydration"]["requests"]
    finally:
        daemon.clean_up()
    took = figures.values["hydration of everything"]
    figures.values["hydration, to the raw fetch"] = (
        took / figures.values["raw fetch of the root tree"]
    )


def measure_clone(figures: Figures, url: str, scratch: Path) -> None:
    tree = scratch / "clone"
    clone = ["git", "clone", "--quiet", url, str(tree)]
    environment = quiet_git_environment()
    figures.timed("clone: git clone", lambda: subprocess.run(clone, env=environment, check=True))
    figures.timed("clone: first ls", lambda: command(tree, "ls"))
    in_tree(figures, "clone: ", tree, None)


def measure(count: int, server: ArtifactsProcess, options: argparse.Namespace) -> Figures:
    figures = Figures(f"{count:,} files")
    source = lines_repository(count, options.cache)
    url = server.create(f"lines-{count}", source).url
    parts: dict[str, Callable[[Path], None]] = {
        "mount": lambda scratch: measure_mount(figures, url, scratch),
        "hydration": lambda scratch: measure_hydration(figures, url, source, scratch),
        "clone": lambda scratch: measure_clone(figures, url, scratch),
    }
    for name, part in parts.items():
        if name in options.part or not options.part:
            scratch = Path(tempfile.mkdtemp(prefix="afs-", dir="/tmp"))
            try:
                part(scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return figures


def measure_shape(shape: str, cache: Path) -> Figures:
    """A repository that is large in another way than by its number of files. Behind a plain `git
    http-backend`: to push 50,000 branches takes git minutes."""
    repository = shaped_repository(shape, cache)
    with http_backend(repository.parent) as backend:
        return measure_shaped_mount(shape, f"{backend.url}/{repository.name}")


def measure_shaped_mount(shape: str, url: str) -> Figures:
    figures = Figures(shape)
    scratch = Path(tempfile.mkdtemp(prefix="afs-", dir="/tmp"))
    daemon = DaemonProcess(scratch, watched=False)
    daemon.start()
    try:
        time.sleep(2)
        figures.timed("add-repo", lambda: daemon.add_repo("big", url))
        tree = daemon.mounts / "big"
        worker = daemon.worker(tree)
        figures.timed("first ls", lambda: command(tree, "ls"))
        figures.timed("git log, at once", lambda: command(tree, "git", "log", "--oneline"), worker)
        daemon.wait_for("big", "index", timeout=INDEX_DEADLINE_S)
        figures.timed("first find", lambda: command(tree, "find", "."), worker)
        figures.timed("second find", lambda: command(tree, "find", "."), worker)
        figures.timed("all contents", lambda: command(tree, "grep", "-rc", "e", "."), worker)
        daemon.wait_for("big", "history", timeout=INDEX_DEADLINE_S)
        settle(worker)
        figures.timed("git status", lambda: command(tree, "git", "status"), worker)
        figures.timed("git log", lambda: command(tree, "git", "log", "--oneline"), worker)
        figures.timed("git branch -a", lambda: command(tree, "git", "branch", "-a"), worker)
        figures.timed("status of the command line", lambda: daemon.run("status"))
        figures.timed("fetch of the command line", lambda: daemon.run("fetch", "--name", "big"))
        figures.values["RSS at the end, MB"] = memory_kib(worker) / 1024
    finally:
        daemon.clean_up()
        shutil.rmtree(scratch, ignore_errors=True)
    return figures


def print_table(results: Sequence[Figures]) -> None:
    print("| | " + " | ".join(figures.name for figures in results) + " |")
    print("|---|" + "---:|" * len(results))
    names = dict.fromkeys(name for figures in results for name in figures.values)
    for name in names:
        cells = [figures.values.get(name) for figures in results]
        print(f"| {name} | " + " | ".join("" if c is None else f"{c:.3g}" for c in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/benchmark --scale", description=__doc__)
    default = "1000,10000,100000,1000000"
    shapes = "numbers of files, or " + ", ".join(SHAPES)
    parser.add_argument("sizes", nargs="?", default=default, metavar="FILES,…", help=shapes)
    parser.add_argument("--part", action="append", default=[], metavar="mount|hydration|clone")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    options = parser.parse_args()
    results: list[Figures] = []
    scratch = Path(tempfile.mkdtemp(prefix="afs-", dir="/tmp"))
    server = ArtifactsProcess(scratch)
    server.start()
    try:
        for name in options.sizes.split(","):
            if name in SHAPES:
                results.append(measure_shape(name, options.cache))
            else:
                results.append(measure(int(name), server, options))
            print_table(results)
            sys.stdout.flush()
            if options.json is not None:
                rows = [{"repository": figures.name, **figures.values} for figures in results]
                options.json.write_text(json.dumps(rows, indent=1))
    finally:
        server.stop()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
