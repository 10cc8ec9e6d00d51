"""Measure what git takes right after the mount: before all of history is here.

Prints a table in Markdown: seconds, megabytes and requests of each command, side by side with
`git clone --filter=blob:none` and `git clone`, of which the clone itself is the first row. Every
command of the first part has a mount of its own, made just before; those of the second part run in
one that has its history. Medians of some runs; the figures of all are on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contenders import ArtifactFS, BloblessClone, Contender, Peer, PlainClone
from benchmarks.fast_import import FIRST_COMMIT_TIME, quiet_git_environment, run_git
from benchmarks.make_django_history import DEFAULT_CACHE, django_history
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.processes import ArtifactsProcess

COLD = (
    "git log --oneline",
    "git status",
    "git checkout -q HEAD~200",
    "git log --oneline -5 -- {path}",
    "git blame {path}",
    "git branch -avv",
    "find . -name .git -prune -o -print",
)
WARM = (
    "git log --oneline",
    "git log --oneline -- {path}",
    "git checkout -q HEAD~200",
    "git status",
)
OPENING = "until it can be listed"
GIVE_UP_S = 600


@dataclass(slots=True)
class Figures:
    """What one command took, in several runs."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.seconds:
            return "failed"
        s, mb = statistics.median(self.seconds), statistics.median(self.megabytes)
        return f"{s:.2f} s, {mb:.1f} MB, {statistics.median(self.requests):.0f}"


class FirstMinute:
    """The figures of every contender."""

    def __init__(self, proxy: DelayProxy, url: str, path: str, scratch: Path) -> None:
        self.figures: dict[tuple[str, str], Figures] = {}
        self._proxy = proxy
        self._url = url
        self._path = path
        self._scratch = scratch
        self._number = 0

    def measure(self, kind: type[Contender]) -> None:
        """One run of everything."""
        if issubclass(kind, PlainClone):
            with self._opened(kind) as tree:
                for command in COLD:
                    self._run(kind, "", command, tree)
                    subprocess.run(["git", "checkout", "-q", "-"], cwd=tree, capture_output=True)
                self._warm(kind, tree)
            return
        for command in COLD:
            with self._opened(kind) as tree:
                self._run(kind, "", command, tree)
        with self._opened(kind, settled=True) as tree:
            self._warm(kind, tree)

    def _warm(self, kind: type[Contender], tree: Path) -> None:
        for command in WARM:
            self._run(kind, "later: ", command, tree)

    @contextlib.contextmanager
    def _opened(self, kind: type[Contender], *, settled: bool = False) -> Iterator[Path]:
        self._number += 1
        contender = kind(self._scratch / f"{self._number}")
        try:
            contender.prepare()
            with self._noted(kind, OPENING):
                tree = contender.open(self._url)
                os.listdir(tree)
            if settled:
                contender.settle()
            yield tree
        finally:
            contender.close()

    def _run(self, kind: type[Contender], when: str, command: str, tree: Path) -> None:
        with self._noted(kind, when + command):
            subprocess.run(
                ["sh", "-c", command.format(path=self._path)],
                cwd=tree,
                env=quiet_git_environment(),
                stdout=subprocess.DEVNULL,
                timeout=GIVE_UP_S,
                check=True,
            )

    @contextlib.contextmanager
    def _noted(self, kind: type[Contender], what: str) -> Iterator[None]:
        figures = self.figures.setdefault((what, kind.name), Figures())
        requests, down = len(self._proxy.requests), self._proxy.bytes_down
        started = time.monotonic()
        try:
            yield
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{kind.name}: {error}", file=sys.stderr)
            return
        figures.seconds.append(time.monotonic() - started)
        figures.megabytes.append((self._proxy.bytes_down - down) / 1e6)
        figures.requests.append(len(self._proxy.requests) - requests)
        print(f"{kind.name}: {what}: {figures}", file=sys.stderr, flush=True)

    def table(self, kinds: list[type[Contender]]) -> Iterator[str]:
        names = [kind.name for kind in kinds]
        yield "| right after the mount | " + " | ".join(f"`{name}`" for name in names) + " |"
        yield "|---" * (len(names) + 1) + "|"
        for what in dict.fromkeys(what for what, _ in self.figures):
            cells = [str(self.figures.get((what, name), "")) for name in names]
            yield f"| {what.format(path=self._path)} | " + " | ".join(cells) + " |"


def with_branches(source: Path, count: int, scratch: Path) -> Path:
    """A bare clone of `source` with `count` further branches, of one commit each."""
    copy = scratch / "branches.git"
    run_git("clone", "--quiet", "--bare", source, copy)
    commits = run_git("-C", copy, "rev-list", "--first-parent", "HEAD").split()
    lines = []
    for number in range(count):
        start = commits[number * len(commits) // count]
        when = FIRST_COMMIT_TIME + 60 * number
        lines.append(
            f"commit refs/heads/topic/{number}\ncommitter A <a@example.org> {when} +0000\n"
            f"data 5\ntopic\nfrom {start}\nM 100644 inline topic.txt\ndata 6\n{number:05d}\n\n"
        )
    command = ["git", "-C", str(copy), "fast-import", "--quiet"]
    subprocess.run(command, input="".join(lines).encode(), check=True)
    return copy


def main() -> None:
    """Run as ``scripts/benchmark --first-minute``."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark --first-minute", description=__doc__)
    parser.add_argument("--repository", type=Path, help="a bare repository (default: Django)")
    parser.add_argument("--path", default="django/db/models/query.py", help="a file with history")
    parser.add_argument("--branches", type=int, default=1_000, help="more of them (default: 1000)")
    parser.add_argument("--rtt", type=float, default=50, metavar="MS", help="default: 50")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path, metavar="PATH", help="another implementation")
    options = parser.parse_args()
    kinds: list[type[Contender]] = [ArtifactFS, BloblessClone, PlainClone]
    if options.peer:
        Peer.program = options.peer.resolve()
        kinds.append(Peer)
    with tempfile.TemporaryDirectory(prefix="first-minute-") as folder:
        scratch = Path(folder)
        source = options.repository or django_history(DEFAULT_CACHE)
        source = with_branches(source, options.branches, scratch) if options.branches else source
        server = ArtifactsProcess(scratch / "server")
        server.start()
        try:
            url = server.create("first-minute", source).url
            target = ("127.0.0.1", server.port)
            with DelayProxy(target, rtt=options.rtt / 1000) as proxy:
                found = FirstMinute(proxy, proxy.url(url), options.path, scratch / "trees")
                for _ in range(options.runs):
                    for kind in kinds:
                        found.measure(kind)
        finally:
            server.stop()
        print("\n".join(found.table(kinds)))


if __name__ == "__main__":
    main()
