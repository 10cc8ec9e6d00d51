"""A long day in short: mixed work on several mounts of one daemon, watched for what grows.

    python benchmarks/soak.py [--minutes 20] [--mounts 5] [--json FILE]

Each mount has a thread that reads, writes, commits, fetches, switches and checks what it reads
against Git; one more evicts the cache, and one pushes to the remotes. Every few seconds memory,
descriptors, threads, processes and temporary files are counted. Exits with 1 where something was
wrong, or is growing at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fast_import import quiet_git_environment
from benchmarks.make_synthetic import make_files
from benchmarks.many_mounts import workers
from tests.e2e.mount_table import descendants, memory_kib, mounts_below
from tests.e2e.processes import ArtifactsProcess, DaemonProcess

SAMPLE_S = 5.0
PAUSE_S = 0.1
"""Between two actions of a mount: the machine is shared, and a soak is about hours."""
GROWTH_MIB = 8.0
"""A worker may weigh that much more at the end than after a third of the time."""

_ENVIRONMENT = quiet_git_environment() | {
    "GIT_AUTHOR_NAME": "Soak",
    "GIT_AUTHOR_EMAIL": "soak@example.org",
    "GIT_COMMITTER_NAME": "Soak",
    "GIT_COMMITTER_EMAIL": "soak@example.org",
}


@dataclass(slots=True)
class Sample:
    """One look: KiB of PSS, and counts, over all workers and over the rest."""

    at_s: float
    workers_pss: list[int]
    workers_descriptors: list[int]
    workers_threads: list[int]
    supervisor_pss: int
    supervisor_descriptors: int
    processes: int
    temporary_files: int
    state_bytes: int


@dataclass(slots=True)
class Outcome:
    """What happened."""

    minutes: float
    mounts: int
    actions: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    left_mounts: int = 0
    left_processes: int = 0


def git(tree: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        ["git", "-C", tree, *arguments],
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()[-400:]}")
    return done.stdout


class Worker:
    """What is done in one mount. Every action leaves a tree that git calls clean."""

    def __init__(self, name: str, tree: Path, daemon: DaemonProcess, outcome: Outcome) -> None:
        self.name = name
        self.tree = tree
        self.daemon = daemon
        self.outcome = outcome
        self.rng = random.Random(name)
        self.number = 0

    def run(self, until: float) -> None:
        actions: list[tuple[int, Callable[[], None]]] = [
            (30, self.read),
            (15, self.write_and_commit),
            (10, self.scratch),
            (10, self.rename_and_remove),
            (10, self.look),
            (6, self.fetch),
            (6, self.switch),
            (3, self.grep),
        ]
        choices = [action for weight, action in actions for _ in range(weight)]
        while time.monotonic() < until:
            action = self.rng.choice(choices)
            try:
                action()
            except Exception as error:
                self.outcome.faults.append(f"{self.name}: {action.__name__}: {error}"[:500])
                self.mend()
            self.outcome.actions[action.__name__] += 1
            time.sleep(PAUSE_S)

    def mend(self) -> None:
        """After a fault, so that one is not counted a hundred times."""
        lock = self.daemon.state / "repos" / self.name / "git" / "index.lock"
        lock.unlink(missing_ok=True)  # of a git that was killed because it took too long
        for command in (
            ("reset", "--hard", "-q"),
            ("clean", "-fdq"),
            ("checkout", "-q", "-f", "main"),
        ):
            with contextlib.suppress(Exception):
                git(self.tree, *command)

    def read(self) -> None:
        """Twenty files, compared with what Git has."""
        names = git(self.tree, "ls-files", "-z").split("\0")[:-1]
        for name in self.rng.sample(names, min(20, len(names))):
            content = (self.tree / name).read_bytes()
            expected = git(self.tree, "rev-parse", f"HEAD:{name}").strip()
            found = subprocess.run(
                ["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True
            ).stdout.decode()
            if found.strip() != expected:
                raise AssertionError(f"{name} reads as {found.strip()}, HEAD has {expected}")

    def write_and_commit(self) -> None:
        self.number += 1
        folder = self.tree / "soak" / f"part{self.rng.randrange(8)}"
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(self.rng.randrange(1, 12)):
            path = folder / f"file{self.rng.randrange(40)}.txt"
            small = not path.exists() or path.stat().st_size < 60_000
            with path.open("ab" if small else "wb") as file:
                file.write(self.rng.randbytes(self.rng.randrange(10, 20_000)).hex().encode())
        (self.tree / "README.md").write_text(f"soak {self.name} {self.number}\n")
        git(self.tree, "add", "-A")
        git(self.tree, "commit", "-q", "-m", f"Soak {self.number}")
        self._clean()

    def scratch(self) -> None:
        """A build's worth of files that come and go."""
        folder = self.tree / "scratch"
        for number in range(60):
            path = folder / f"d{number % 6}" / f"o{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.rng.randbytes(2_000))
            if number % 3 == 0:
                path.rename(path.with_suffix(".new"))
        shutil.rmtree(folder)
        self._clean()

    def rename_and_remove(self) -> None:
        names = git(self.tree, "ls-files", "-z", "--", "*.py").split("\0")[:-1]
        victim, moved = self.rng.sample(names, 2)
        (self.tree / victim).unlink()
        (self.tree / moved).rename(self.tree / f"{moved}.moved")
        if " D " not in git(self.tree, "status", "--porcelain"):
            raise AssertionError(f"git status does not see that {victim} is gone")
        git(self.tree, "checkout", "-q", "--", ".")
        git(self.tree, "clean", "-fdq")
        self._clean()

    def look(self) -> None:
        git(self.tree, "log", "-5", "--stat")
        git(self.tree, "diff", "HEAD~1", "--stat", check=False)
        subprocess.run(["ls", "-lR", self.tree], stdout=subprocess.DEVNULL, check=True, timeout=120)

    def fetch(self) -> None:
        self._artifact_fs("fetch")

    def switch(self) -> None:
        """There and back: by the daemon, or by git."""
        by_git = self.rng.random() < 0.3
        for target in (self.rng.choice(("wide", "first")), "main"):
            if by_git:
                git(self.tree, "checkout", "-q", target)
            else:
                detach = () if target == "main" else ("--detach",)
                ref = "origin/wide" if target == "wide" else target
                self._artifact_fs("switch", ref, *detach)
            self._clean()

    def grep(self) -> None:
        found = subprocess.run(
            ["grep", "-r", "-c", "zzzabsent", "."], cwd=self.tree, capture_output=True, timeout=300
        )
        if found.returncode == 2:
            raise AssertionError(f"grep: {found.stderr.decode()[-300:]}")

    def _artifact_fs(self, *arguments: str) -> None:
        done = self.daemon.run(*arguments, "--name", self.name, check=False, timeout=120)
        if done.returncode:
            raise AssertionError(f"artifact-fs {' '.join(arguments)}: {done.stderr.strip()}")

    def _clean(self) -> None:
        status = git(self.tree, "status", "--porcelain")
        if status:
            raise AssertionError(f"the tree is not clean: {status[:300]!r}")


def evict(daemon: DaemonProcess, outcome: Outcome, until: float) -> None:
    rng = random.Random("evict")
    while time.monotonic() < until:
        time.sleep(min(20.0, max(0.0, until - time.monotonic())))
        try:
            daemon.run("evict-cache", "--max-bytes", str(rng.choice((0, 1 << 20))), timeout=120)
            if rng.random() < 0.3:
                daemon.run("gc", timeout=120)
        except Exception as error:
            outcome.faults.append(f"evict: {error}"[:500])
        outcome.actions["evict"] += 1


def push(clones: list[Path], outcome: Outcome, until: float) -> None:
    """Somebody else's work, so that fetches have something to fetch."""
    rng = random.Random("push")
    while time.monotonic() < until:
        time.sleep(min(10.0, max(0.0, until - time.monotonic())))
        clone = rng.choice(clones)
        (clone / "news.txt").write_text(f"{time.time()}\n")
        git(clone, "add", "-A")
        git(clone, "commit", "-q", "-m", "News")
        git(clone, "push", "-q", "origin", "HEAD:news")
        outcome.actions["push"] += 1


def sample(daemon: DaemonProcess, began: float) -> Sample:
    serving = workers(daemon)
    everybody = [daemon.pid, *descendants(daemon.pid)]
    rest = [pid for pid in everybody if pid not in serving]
    temporary = state_bytes = 0
    for directory, _, names in os.walk(daemon.state):
        for name in names:
            with contextlib.suppress(OSError):
                state_bytes += os.lstat(os.path.join(directory, name)).st_size
            if name in ("daemon.lock", "worker.lock"):
                continue
            temporary += name.endswith((".tmp", ".new", ".lock")) or name.startswith(
                ("tmp", ".tmp")
            )
    return Sample(
        at_s=round(time.monotonic() - began, 1),
        workers_pss=[memory_kib(pid, "Pss") for pid in serving],
        workers_descriptors=[_count(pid, "fd") for pid in serving],
        workers_threads=[_count(pid, "task") for pid in serving],
        supervisor_pss=sum(_pss(pid) for pid in rest),
        supervisor_descriptors=_count(daemon.pid, "fd"),
        processes=len(everybody),
        temporary_files=temporary,
        state_bytes=state_bytes,
    )


def _count(pid: int, what: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{what}"))
    except OSError:
        return 0


def _pss(pid: int) -> int:
    try:
        return memory_kib(pid, "Pss")
    except OSError:
        return 0  # a git that has just ended


def soak(minutes: float, count: int, directory: Path) -> Outcome:
    """Run it; everything it made is gone afterwards but the outcome."""
    outcome = Outcome(minutes, count)
    server = ArtifactsProcess(directory / "server")
    server.start()
    daemon = DaemonProcess(Path(tempfile.mkdtemp(prefix="afs-soak-", dir="/tmp")), watched=False)
    try:
        clones, urls = _remotes(server, count, directory)
        daemon.start()
        trees = []
        for number, url in enumerate(urls):
            trees.append(daemon.add_repo(f"soak-{number}", url, "--hydrate", "source"))
            daemon.wait_for(f"soak-{number}", "index")
        began = time.monotonic()
        until = began + minutes * 60
        threads = [
            threading.Thread(target=Worker(tree.name, tree, daemon, outcome).run, args=(until,))
            for tree in trees
        ]
        threads.append(threading.Thread(target=evict, args=(daemon, outcome, until)))
        threads.append(threading.Thread(target=push, args=(clones, outcome, until)))
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(SAMPLE_S)
            outcome.samples.append(sample(daemon, began))
        for thread in threads:
            thread.join()
        _finish(daemon, trees, outcome)
    finally:
        daemon.clean_up()
        log = directory.parent / "soak-daemon.log"
        shutil.copy(daemon.log, log)
        print(f"the daemon's log is in {log}")
        shutil.rmtree(daemon.directory, ignore_errors=True)
        server.stop()
    return outcome


def _remotes(server: ArtifactsProcess, count: int, directory: Path) -> tuple[list[Path], list[str]]:
    clones, urls = [], []
    for number in range(count):
        source = directory / f"source-{number}.git"
        make_files(source, 1000 + number)
        wide = directory / f"clone-{number}"
        subprocess.run(["git", "clone", "-q", source, wide], check=True, env=_ENVIRONMENT)
        git(wide, "checkout", "-q", "-b", "wide")
        for path in sorted(wide.rglob("*.py"))[::3]:
            path.write_bytes(path.read_bytes() + b"# wide\n")
        git(wide, "commit", "-q", "-a", "-m", "Change a third of all files")
        git(wide, "push", "-q", "origin", "wide")
        served = server.create(f"soak-{number}", source)
        git(wide, "remote", "set-url", "origin", served.url)
        clones.append(wide)
        urls.append(served.url)
    return clones, urls


def _finish(daemon: DaemonProcess, trees: list[Path], outcome: Outcome) -> None:
    for tree in trees:
        checked = git(tree, "fsck", "--connectivity-only", "--no-dangling", check=False)
        if "error" in checked or "missing" in checked:
            outcome.faults.append(f"{tree.name}: git fsck: {checked[:300]}")
    everybody = [daemon.pid, *descendants(daemon.pid)]
    daemon.stop()
    time.sleep(1)
    outcome.left_mounts = len(mounts_below(daemon.mounts))
    outcome.left_processes = sum(
        Path(f"/proc/{pid}/exe").exists() for pid in everybody if pid != daemon.pid
    )


def growth_mib(samples: list[Sample]) -> float:
    """How much heavier the heaviest-growing worker is at the end than after a third of the time."""
    third = len(samples) // 3
    early = samples[third : 2 * third] or samples
    late = samples[2 * third :] or samples
    count = min(len(one.workers_pss) for one in samples)

    def middle(part: list[Sample], worker: int) -> float:
        return statistics.median(one.workers_pss[worker] for one in part)

    return max((middle(late, w) - middle(early, w)) / 1024 for w in range(count))


def show(outcome: Outcome) -> str:
    """A table: three moments, side by side."""
    samples = outcome.samples
    moments = [samples[len(samples) // 10], samples[len(samples) // 2], samples[-1]]
    rows: list[tuple[str, list[str]]] = [
        ("after", [f"{one.at_s:.0f} s" for one in moments]),
        (
            "PSS of a worker, median MiB",
            [f"{statistics.median(one.workers_pss) / 1024:.1f}" for one in moments],
        ),
        ("PSS of a worker, largest MiB", [f"{max(one.workers_pss) / 1024:.1f}" for one in moments]),
        ("descriptors of a worker, most", [str(max(one.workers_descriptors)) for one in moments]),
        ("threads of a worker, most", [str(max(one.workers_threads)) for one in moments]),
        ("PSS of the rest, MiB", [f"{one.supervisor_pss / 1024:.1f}" for one in moments]),
        ("descriptors of the supervisor", [str(one.supervisor_descriptors) for one in moments]),
        ("processes", [str(one.processes) for one in moments]),
        ("temporary files", [str(one.temporary_files) for one in moments]),
        ("state root, MiB", [f"{one.state_bytes / (1 << 20):.1f}" for one in moments]),
    ]
    lines = [f"{name:<34}" + "".join(f"{value:>12}" for value in values) for name, values in rows]
    done = ", ".join(f"{name} {count}" for name, count in sorted(outcome.actions.items()))
    lines += [
        f"growth of a worker, second to last third, at most: {growth_mib(samples):.1f} MiB",
        f"done: {done}",
        f"left behind: {outcome.left_mounts} mounts, {outcome.left_processes} processes",
        f"faults: {len(outcome.faults)}",
        *outcome.faults[:20],
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--mounts", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="afs-soak-") as directory:
        outcome = soak(options.minutes, options.mounts, Path(directory))
    print(show(outcome))
    if options.json:
        outcome_json = {
            "minutes": outcome.minutes,
            "mounts": outcome.mounts,
            "actions": dict(outcome.actions),
            "faults": outcome.faults,
            "samples": [asdict(one) for one in outcome.samples],
        }
        options.json.write_text(json.dumps(outcome_json, indent=1))
    bad = outcome.faults or outcome.left_mounts or outcome.left_processes
    sys.exit(bool(bad or growth_mib(outcome.samples) > GROWTH_MIB))


if __name__ == "__main__":
    main()
