"""Twenty tasks on forks of one baseline, beside the same with git.

    .venv/bin/python benchmarks/fleet.py [--repository DIR.git] [--tasks 20] [--only TEXT]

Each task writes a file, runs a test, commits and pushes; `--concurrency` (8) at a time. Every way
makes its forks, and ends when the last push has been answered; merging is not in it. What is alike
stands side by side: workspaces without history and without contents ahead beside `git clone
--depth 1`, those with both beside blobless and full clones. `git worktree` has one clone and one
fork for all tasks.

Prints a table in Markdown: seconds until the first and the last tree can be read and until all is
pushed; CPU seconds of everything but the server, and of the server; bytes on the loopback, both
ways; disk; and the most memory that all processes but the server's had at a time (PSS, looked at
five times a second). As root it runs in a network namespace of its own, so that nobody else's bytes
are counted. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import artifactfs
from artifactfs.client import Artifacts, CreatedRepo
from tests.e2e.processes import ArtifactsProcess, DaemonProcess

TEST = "grep -q Task notes.md && ls | wc -l"
IDENTITY = ("-c", "user.name=Bench", "-c", "user.email=bench@example.org")
LOOK_EVERY_S = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")
_OWN_NETWORK = "FLEET_OWN_NETWORK"


@dataclass(slots=True)
class Row:
    """What one way has cost; times in seconds, sizes in bytes."""

    way: str
    trees: list[float] = field(default_factory=list)
    all_s: float = 0.0
    cpu_s: float = 0.0
    server_s: float = 0.0
    network: int = 0
    disk: int = 0
    memory: int = 0

    def __str__(self) -> str:
        times = f"{min(self.trees):.2f} s | {max(self.trees):.2f} s | {self.all_s:.2f} s"
        cpu = f"{self.cpu_s:.1f} s | {self.server_s:.1f} s"
        sizes = " | ".join(f"{n / 1e6:,.0f} MB" for n in (self.network, self.disk, self.memory))
        return f"| {self.way} | {times} | {cpu} | {sizes} |"


HEAD = """\
| way | first tree | last tree | all pushed | CPU | CPU, server | network | disk | memory |
|---|---|---|---|---|---|---|---|---|"""


# -- looking at processes ------------------------------------------------------------------------


def _processes() -> dict[int, tuple[int, int]]:
    """Each process: its parent, and the ticks of it and of what it has waited for."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            found[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    return found


def _family(root: int, processes: dict[int, tuple[int, int]]) -> Iterator[int]:
    yield root
    for pid, (parent, _) in processes.items():
        if parent == root:
            yield from _family(pid, processes)


def cpu_seconds(root: int) -> float:
    processes = _processes()
    return sum(processes[pid][1] for pid in _family(root, processes) if pid in processes) / _TICKS


def memory_bytes(root: int, without: int) -> int:
    """PSS of `root`'s descendants, but for those of `without`."""
    processes = _processes()
    others = set(_family(without, processes))
    total = 0
    for pid in _family(root, processes):
        if pid in others or pid == root:
            continue
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def received() -> int:
    """Bytes that the loopback of our network namespace has carried."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.lstrip().startswith("lo:")).split()[1])


def disk_bytes(*folders: Path) -> int:
    printed = subprocess.run(
        ["du", "-sxc", "--block-size=1", *(folder for folder in folders if folder.exists())],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(printed.stdout.split()[-2])


# -- the ways ------------------------------------------------------------------------------------


def git(*words: str | Path) -> None:
    subprocess.run(["git", *IDENTITY, *map(str, words)], check=True, capture_output=True)


def with_token(made: CreatedRepo) -> str:
    return made.remote.replace("://", f"://x:{quote(made.token, safe='')}@", 1)


def edit_and_test(tree: Path, number: int) -> None:
    (tree / "notes.md").write_text(f"# Task {number}\n")
    subprocess.run(TEST, shell=True, cwd=tree, check=True, capture_output=True)
    git("-C", tree, "add", "notes.md")
    git("-C", tree, "commit", "-q", "-m", f"Task {number}")


class Fleet:
    """The same tasks, in several ways."""

    def __init__(self, server: ArtifactsProcess, scratch: Path, tasks: int, concurrency: int):
        self.scratch, self.tasks, self.concurrency = scratch, tasks, concurrency
        self.server = server
        self._server_pid = server.pid
        self.artifacts = Artifacts(
            server.origin, server.account, server.api_token, server.namespace
        )
        self.baseline = self.artifacts.repo("baseline")

    @contextmanager
    def measured(self, row: Row) -> Iterator[float]:
        """Yields when it began."""
        done, us = threading.Event(), os.getpid()

        def look() -> None:
            while not done.wait(LOOK_EVERY_S):
                row.memory = max(row.memory, memory_bytes(us, self._server_pid))

        looking = threading.Thread(target=look)
        network = received()
        server, all_of_us = cpu_seconds(self._server_pid), cpu_seconds(us)
        began = time.monotonic()
        looking.start()
        yield began
        row.all_s = time.monotonic() - began
        row.network = received() - network
        row.server_s = cpu_seconds(self._server_pid) - server
        row.cpu_s = cpu_seconds(us) - all_of_us - row.server_s
        done.set()
        looking.join()

    def workspaces(self, way: str, warm: bool = False, **options: Any) -> Row:
        """`warm`: one workspace of the baseline was open before, as on every day but the first."""
        row, daemon = Row(way), DaemonProcess(self.scratch / "afs", watched=False)
        daemon.directory.mkdir()
        os.environ.update(daemon.environment)
        daemon.start()
        options = {"state_root": daemon.state, "author": "Bench <bench@example.org>", **options}
        try:
            if warm:
                self._open_once(**options)
            with self.measured(row) as began:

                def work(ws: artifactfs.Workspace, number: int) -> None:
                    row.trees.append(time.monotonic() - began)
                    ws.write("notes.md", f"# Task {number}\n")
                    ws.run(TEST, show=False, check=True)
                    ws.commit(f"Task {number}")

                results = artifactfs.fanout(
                    self.baseline, work, n=self.tasks, concurrency=self.concurrency, **options
                )
            print(results, file=sys.stderr)
            assert len(results.passed) == self.tasks, results
            row.disk = sum(result.usage.disk_bytes for result in results)
            row.disk += disk_bytes(daemon.state / "cache")
            return row
        finally:
            daemon.clean_up()
            shutil.rmtree(daemon.directory)

    def _open_once(self, **options: Any) -> None:
        artifactfs.fanout(self.baseline, "ls", n=1, **options)

    def clones(self, way: str, *options: str) -> Row:
        row, folder = Row(way), self.scratch / "clones"
        with self.measured(row) as began:

            def one(number: int) -> None:
                fork = self.baseline.fork(f"clone-{len(list(self.scratch.iterdir()))}-{number}")
                tree = folder / str(number)
                git("clone", "-q", *options, with_token(fork), tree)
                row.trees.append(time.monotonic() - began)
                edit_and_test(tree, number)
                git("-C", tree, "push", "-q", "origin", "HEAD")

            self._at_once(one)
        row.disk = disk_bytes(folder)
        folder.rename(self.scratch / f"done-{time.monotonic_ns()}")
        return row

    def worktrees(self, way: str, *options: str) -> Row:
        row, clone, trees = Row(way), self.scratch / "clone", self.scratch / "trees"
        with self.measured(row) as began:
            fork = self.baseline.fork("worktrees")
            git("clone", "-q", "--no-checkout", *options, with_token(fork), clone)

            def one(number: int) -> None:
                tree = trees / str(number)
                git("-C", clone, "worktree", "add", "-q", "-b", f"task-{number}", tree)
                row.trees.append(time.monotonic() - began)
                edit_and_test(tree, number)
                git("-C", tree, "push", "-q", "origin", "HEAD")

            self._at_once(one)
        row.disk = disk_bytes(clone, trees)
        return row

    def _at_once(self, one: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(self.concurrency) as pool:
            list(pool.map(one, range(self.tasks)))

    def ways(self) -> list[tuple[str, Callable[[str], Row]]]:
        whole: dict[str, Any] = {"depth": None, "hydrate": "source"}
        return [
            ("workspaces", lambda way: self.workspaces(way)),
            ("workspaces, after the first", lambda way: self.workspaces(way, warm=True)),
            ("`git clone --depth 1`", lambda way: self.clones(way, "--depth", "1")),
            (
                "workspaces, whole history, contents ahead",
                lambda way: self.workspaces(way, **whole),
            ),
            (
                "`git clone --filter=blob:none`",
                lambda way: self.clones(way, "--filter=blob:none"),
            ),
            ("`git clone`", lambda way: self.clones(way)),
            ("`git worktree` of one clone", lambda way: self.worktrees(way)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repository", type=Path, help="bare repository; default: this project's")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--only", help="only ways whose name has this text")
    given = parser.parse_args()
    if os.geteuid() == 0 and _OWN_NETWORK not in os.environ:
        command = 'ip link set lo up && exec "$@"'
        words = ["unshare", "--net", "sh", "-c", command, "sh", sys.executable, *sys.argv]
        os.environ[_OWN_NETWORK] = "yes"
        os.execvp("unshare", words)
    scratch = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp"))
    server = ArtifactsProcess(scratch / "server")
    try:
        source = given.repository
        if source is None:
            source = scratch / "source.git"
            git("clone", "-q", "--bare", Path(__file__).resolve().parent.parent, source)
        server.start()
        server.create("baseline", source)
        fleet = Fleet(server, scratch, given.tasks, given.concurrency)
        print(HEAD)
        for way, do in fleet.ways():
            if given.only is None or given.only in way:
                print(do(way), flush=True)
    finally:
        server.stop()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
