"""How long a mount does not answer when its process is killed, or the daemon is started anew.

    scripts/benchmark --pauses [FILES,…] [--kills 50] [--restarts 10] [--json FILE]

Every file is one line and a blob of its own, 20 files a directory, and the kernel knows all of
them. After each SIGKILL of the mount's process five programs ask for one thing each: the first that
is answered says when somebody serves the mount again, the last one when everything is as before
(in a large tree the new process looks through it to find the folders that the kernel knows).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.make_django_history import DEFAULT_CACHE
from benchmarks.make_synthetic import lines_repository
from tests.e2e.processes import DaemonProcess, wait_until

SIZES = "5000,100000"
SETTLED_S = 1.0
"""Between two kills: the new process has nothing left to do."""
PREPARED_S = 400.0


@dataclass(slots=True)
class Pauses:
    """Of one kind of writes and one tree; seconds, one for each kill or restart."""

    files: int
    writes: str
    first_answer: list[float] = field(default_factory=list)
    every_answer: list[float] = field(default_factory=list)
    restart: list[float] = field(default_factory=list)
    """The longest that a request took while the daemon was started anew."""


class Tree:
    """A mount, and what is asked of it."""

    def __init__(self, daemon: DaemonProcess, path: Path) -> None:
        self._daemon = daemon
        self._path = path
        self._numbers = iter(range(1 << 30))
        self._chooser = random.Random(1)
        listed = subprocess.run(
            ["find", ".", "-name", ".git", "-prune", "-o", "-type", "f", "-print"],
            cwd=path,
            check=True,
            capture_output=True,
            text=True,
        )
        self._files = sorted(listed.stdout.splitlines())
        self._opened = os.open(path / self._files[0], os.O_RDONLY)
        self._read()

    def close(self) -> None:
        os.close(self._opened)

    def worker(self) -> int | None:
        found = self._daemon.status("big")
        return int(found["pid"]) if found["state"] == "mounted" and found["pid"] else None

    def look_up(self, folder: Path) -> None:
        with suppress(FileNotFoundError):
            os.stat(folder / f"nobody-has-asked-for-{next(self._numbers)}")

    def questions(self) -> list[Callable[[], object]]:
        """None can be answered from a cache."""
        some = self._path / self._chooser.choice(self._files)
        other = self._path / self._chooser.choice(self._files)
        return [
            lambda: self.look_up(self._path),
            lambda: self.look_up(some.parent),
            lambda: self.look_up(other.parent),
            self._read,
            lambda: (self._path / f"made-{next(self._numbers)}").mkdir(),
        ]

    def _read(self) -> bytes:
        os.posix_fadvise(self._opened, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(self._opened, 100, 0)

    def kill(self, pauses: Pauses) -> None:
        worker = wait_until(self.worker, "a worker")
        questions = self.questions()
        took: list[float] = []

        def ask(question: Callable[[], object]) -> None:
            question()
            took.append(time.monotonic() - began)

        asking = [threading.Thread(target=ask, args=(question,)) for question in questions]
        began = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        if len(took) < len(questions):
            raise RuntimeError("a program got an error")
        pauses.first_answer.append(min(took))
        pauses.every_answer.append(max(took))

    def restart(self, pauses: Pauses) -> None:
        with longest_step(lambda: self.look_up(self._path)) as longest:
            self._daemon.run("daemon", "restart")
            wait_until(self.worker, "a worker")
        pauses.restart.append(longest[0])


@contextmanager
def longest_step(step: Callable[[], object]) -> Iterator[list[float]]:
    """Do `step` again and again; the longest that one took is in the list then."""
    longest, stop = [0.0], threading.Event()

    def run() -> None:
        while not stop.is_set():
            began = time.monotonic()
            step()
            longest[0] = max(longest[0], time.monotonic() - began)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield longest
    finally:
        stop.set()
        thread.join()


def measure(files: int, writes: str, options: argparse.Namespace) -> Pauses:
    pauses = Pauses(files, writes)
    source = lines_repository(files, options.cache)
    scratch = Path(tempfile.mkdtemp(prefix="afs-", dir="/tmp"))
    daemon = DaemonProcess(scratch, watched=False)
    daemon.start()
    try:
        path = daemon.add_repo("big", str(source), "--writes", writes)
        for state in ("history", "index"):
            daemon.wait_for("big", state, timeout=PREPARED_S)
        tree = Tree(daemon, path)
        for number in range(options.kills + options.restarts):
            time.sleep(SETTLED_S)
            if number < options.kills:
                tree.kill(pauses)
            else:
                tree.restart(pauses)
        tree.close()
    finally:
        daemon.clean_up()
        shutil.rmtree(scratch, ignore_errors=True)
    return pauses


def cell(seconds: list[float]) -> str:
    if not seconds:
        return ""
    return f"{1000 * statistics.median(seconds):.0f} / {1000 * max(seconds):.0f}"


def print_table(results: list[Pauses]) -> None:
    print("| files | writes | first answer | every answer | daemon started anew |")
    print("|---:|---|---:|---:|---:|")
    for one in results:
        figures = " | ".join(map(cell, (one.first_answer, one.every_answer, one.restart)))
        print(f"| {one.files:,} | {one.writes} | {figures} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="?", default=SIZES, metavar="FILES,…", help=SIZES)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    options = parser.parse_args()
    kinds = ("kernel", "fuse") if os.geteuid() == 0 else ("fuse",)
    sizes = [int(size) for size in options.sizes.split(",")]
    results = [measure(files, writes, options) for files in sizes for writes in kinds]
    print("median / longest, milliseconds\n")
    print_table(results)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in results], indent=1))


if __name__ == "__main__":
    main()
