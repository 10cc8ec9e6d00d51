"""Twenty tasks on forks of one baseline, beside the same with `git clone` and `git worktree`.

    .venv/bin/python benchmarks/fleet.py [--repository DIR.git] [--tasks 20]

Each task changes a file, runs a test, commits and pushes. The workspaces have `depth=1` and
`hydrate="none"`, and one of their forks is merged by the server; the others have all of
history, and merge nothing.
Prints a table in Markdown: seconds until the first tree can be read and until all have been pushed,
bytes from the server, disk and memory. `git worktree` has one clone and one repository for all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import artifactfs
from artifactfs.client import Artifacts, CreatedRepo
from artifactfs.workspaces.fanout import Results
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.processes import ArtifactsProcess, DaemonProcess

CONCURRENCY = 8
TEST = "grep -q Task notes.md && ls | wc -l"
IDENTITY = ("-c", "user.name=Bench", "-c", "user.email=bench@example.org")


@dataclass(frozen=True, slots=True)
class Row:
    way: str
    first_s: float
    all_s: float
    received: int
    disk: int
    memory: int | None
    """None: not measured."""

    def __str__(self) -> str:
        sizes = (
            "not measured" if n is None else f"{n / 1e6:.1f} MB"
            for n in (self.received, self.disk, self.memory)
        )
        return f"| {self.way} | {self.first_s:.2f} s | {self.all_s:.2f} s | {' | '.join(sizes)} |"


def git(*words: str | Path) -> None:
    subprocess.run(["git", *IDENTITY, *map(str, words)], check=True, capture_output=True)


def with_token(made: CreatedRepo) -> str:
    return made.remote.replace("://", f"://x:{quote(made.token, safe='')}@", 1)


def edit_and_test(tree: Path, number: int) -> None:
    (tree / "notes.md").write_text(f"# Task {number}\n")
    subprocess.run(TEST, shell=True, cwd=tree, check=True, capture_output=True)
    git("-C", tree, "add", "notes.md")
    git("-C", tree, "commit", "-q", "-m", f"Task {number}")


def disk_bytes(*folders: Path) -> int:
    printed = subprocess.run(
        ["du", "-sxc", "--block-size=1", *folders], capture_output=True, text=True, check=True
    )
    return int(printed.stdout.split()[-2])


class Fleet:
    """The same tasks, in several ways."""

    def __init__(self, server: ArtifactsProcess, proxy: DelayProxy, scratch: Path, tasks: int):
        self.scratch, self.tasks, self.proxy = scratch, tasks, proxy
        self._server = server
        origin = proxy.url(server.origin)
        self.artifacts = Artifacts(origin, server.account, server.api_token, server.namespace)
        self.first_s = 0.0

    def by_proxy(self, made: CreatedRepo) -> CreatedRepo:
        return replace(made, remote=self.proxy.url(made.remote))

    def workspaces(self, baseline: str) -> tuple[int, int]:
        daemon = DaemonProcess(self.scratch / "afs")
        daemon.directory.mkdir()
        os.environ.update(daemon.environment)
        daemon.start()
        try:
            began = time.monotonic()
            ready: list[float] = []

            class Baseline:
                name = baseline
                fork = staticmethod(
                    lambda name: self.by_proxy(self.artifacts.repo(baseline).fork(name))
                )

            def work(ws: artifactfs.Workspace, number: int) -> None:
                ready.append(time.monotonic() - began)
                ws.write("notes.md", f"# Task {number}\n")
                ws.run(TEST, show=False, check=True)
                ws.commit(f"Task {number}")

            results = artifactfs.fanout(
                Baseline(),
                work,
                n=self.tasks,
                concurrency=CONCURRENCY,
                author="Bench <bench@example.org>",
                state_root=daemon.state,
            )
            self.first_s = min(ready)
            print(results, file=sys.stderr)
            self.merge(baseline, results)
            used = sum(r.usage.disk_bytes for r in results) + disk_bytes(daemon.state / "cache")
            return used, max((r.usage.memory_bytes for r in results), default=0) * CONCURRENCY
        finally:
            daemon.clean_up()

    def merge(self, baseline: str, results: Results) -> None:
        for result in results.passed[:1]:
            self.artifacts.repo(baseline).merge(result.branch or "main", head_repo=result.fork)

    def clones(self, baseline: str, *options: str) -> tuple[int, None]:
        began = time.monotonic()
        ready: list[float] = []

        def one(number: int) -> None:
            fork = self.by_proxy(self.artifacts.repo(baseline).fork(f"{baseline}-c{number}"))
            tree = self.scratch / "clones" / str(number)
            git("clone", "-q", *options, with_token(fork), tree)
            ready.append(time.monotonic() - began)
            edit_and_test(tree, 100 + number)
            git("-C", tree, "push", "-q", "origin", "HEAD")

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(one, range(self.tasks)))
        self.first_s = min(ready)
        return disk_bytes(self.scratch / "clones"), None

    def worktrees(self, baseline: str) -> tuple[int, None]:
        began = time.monotonic()
        fork = self.by_proxy(self.artifacts.repo(baseline).fork(f"{baseline}-w"))
        clone, trees = self.scratch / "clone", self.scratch / "trees"
        git("clone", "-q", "--no-checkout", with_token(fork), clone)
        ready: list[float] = []

        def one(number: int) -> None:
            tree = trees / str(number)
            git("-C", clone, "worktree", "add", "-q", "-b", f"task-{number}", tree)
            ready.append(time.monotonic() - began)
            edit_and_test(tree, 100 + number)
            git("-C", tree, "push", "-q", "origin", "HEAD")

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(one, range(self.tasks)))
        self.first_s = min(ready)
        return disk_bytes(clone, trees), None

    def row(self, way: str, do: Callable[[], tuple[int, int | None]]) -> Row:
        before, began = self.proxy.bytes_down, time.monotonic()
        disk, memory = do()
        seconds = time.monotonic() - began
        return Row(way, self.first_s, seconds, self.proxy.bytes_down - before, disk, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repository", type=Path, help="bare repository; default: this project's")
    parser.add_argument("--tasks", type=int, default=20)
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp"))
    server = ArtifactsProcess(scratch / "server")
    try:
        source = given.repository
        if source is None:
            source = scratch / "source.git"
            git("clone", "-q", "--bare", Path(__file__).resolve().parent.parent, source)
        server.start()
        server.create("baseline", source)
        with DelayProxy(("127.0.0.1", server.port)) as proxy:
            fleet = Fleet(server, proxy, scratch, given.tasks)
            print("| way | first tree | all pushed | received | disk | memory |")
            print("|---|---|---|---|---|---|")
            print(fleet.row("workspaces", lambda: fleet.workspaces("baseline")), flush=True)
            print(fleet.row("git clone", lambda: fleet.clones("baseline")), flush=True)
            print(fleet.row("git worktree", lambda: fleet.worktrees("baseline")), flush=True)
    finally:
        server.stop()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
