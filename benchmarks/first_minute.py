"""Measure what git takes right after the mount: before all of history is here.

Prints a table in Markdown for each repository: seconds, megabytes and requests of each command,
side by side with `git clone --filter=blob:none` and `git clone`, of which the clone itself is the
first row. Every command of the first part has a mount of its own, made just before; those of the
second part run in one that has its history. A clone is made once a run, and what a command has
fetched is taken away again before the next; the full clone is made in the first run alone. Medians
of the runs; the figures of each are on standard error.

``--remotes`` measures Django's history on remotes that lack something and over other links instead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contenders import (
    ArtifactFS,
    BloblessClone,
    Contender,
    Peer,
    PlainClone,
    run_to_the_end,
)
from benchmarks.fast_import import FIRST_COMMIT_TIME, quiet_git_environment, run_git
from benchmarks.make_django_history import DEFAULT_CACHE, django_history
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.processes import ArtifactsProcess
from tests.git.http_backend import http_backend

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
LOOKED_AT = 2_000
"""Commits that tell which file has a history."""
CHANGES = 20


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

    def __init__(
        self,
        proxy: DelayProxy,
        url: str,
        path: str,
        scratch: Path,
        commands: Sequence[str] = COLD,
        later: Sequence[str] = WARM,
    ) -> None:
        self.figures: dict[tuple[str, str], Figures] = {}
        self._commands = commands
        self._later = later
        self._proxy = proxy
        self._url = url
        self._path = path
        self._scratch = scratch
        self._number = 0
        self.requests: Sized = proxy.requests
        """Those of everybody, so far."""

    def measure(self, kind: type[Contender]) -> None:
        """One run of everything."""
        if issubclass(kind, PlainClone):
            with self._opened(kind) as tree:
                for command in self._commands:
                    with _as_before(tree):
                        self._run(kind, "", command, tree)
                self._warm(kind, tree)
            return
        for command in self._commands:
            with self._opened(kind) as tree:
                self._run(kind, "", command, tree)
        if self._later:
            with self._opened(kind, settled=True) as tree:
                self._warm(kind, tree)

    def _warm(self, kind: type[Contender], tree: Path) -> None:
        for command in self._later:
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
        shell = ["sh", "-c", command.format(path=self._path)]
        with self._noted(kind, when + command):
            status = run_to_the_end(shell, env=quiet_git_environment(), cwd=tree)
            if status:
                raise subprocess.CalledProcessError(status, command)

    @contextlib.contextmanager
    def _noted(self, kind: type[Contender], what: str) -> Iterator[None]:
        figures = self.figures.setdefault((what, kind.name), Figures())
        requests, down = len(self.requests), self._proxy.bytes_down
        started = time.monotonic()
        try:
            yield
        except subprocess.CalledProcessError as error:
            print(f"{kind.name}: {error}", file=sys.stderr)
            return
        figures.seconds.append(time.monotonic() - started)
        figures.megabytes.append((self._proxy.bytes_down - down) / 1e6)
        figures.requests.append(len(self.requests) - requests)
        print(f"{kind.name}: {what}: {figures}", file=sys.stderr, flush=True)

    def table(self, kinds: list[type[Contender]]) -> Iterator[str]:
        names = [kind.name for kind in kinds]
        yield "| right after the mount | " + " | ".join(f"`{name}`" for name in names) + " |"
        yield "|---" * (len(names) + 1) + "|"
        yield from self.rows(kinds)

    def rows(self, kinds: list[type[Contender]], of: str = "") -> Iterator[str]:
        """Lines of a table; `of` is what they are rows of."""
        for what in dict.fromkeys(what for what, _ in self.figures):
            cells = [str(self.figures.get((what, kind.name), "")) for kind in kinds]
            name = what.format(path=self._path)
            yield f"| {of}{name} | " + " | ".join(cells) + " |"


@contextlib.contextmanager
def _as_before(tree: Path) -> Iterator[None]:
    """Takes away what a command has changed and fetched."""
    packs = tree / ".git" / "objects" / "pack"
    before = set(os.listdir(packs))
    try:
        yield
    finally:
        branch = ["git", "checkout", "-qf", "@{-1}"]
        subprocess.run(branch, cwd=tree, env=quiet_git_environment(), capture_output=True)
        for name in set(os.listdir(packs)) - before:
            (packs / name).unlink()


def with_branches(source: Path, count: int, scratch: Path) -> Path:
    """A bare clone of `source`, at ``main``, with `count` further branches of one commit each."""
    copy = scratch / "branches.git"
    run_git("clone", "--quiet", "--bare", source, copy)
    run_git("-C", copy, "update-ref", "refs/heads/main", "HEAD")  # what the server takes for HEAD
    run_git("-C", copy, "symbolic-ref", "HEAD", "refs/heads/main")
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


def changed_file(repository: Path) -> str:
    """The file of HEAD that the last commits changed most often, but not more than `CHANGES` times:
    a partial clone asks for each version that `git blame` reads by itself."""
    listed = run_git("-C", repository, "log", f"-{LOOKED_AT}", "--format=", "--name-only", "HEAD")
    here = set(run_git("-C", repository, "ls-tree", "-r", "--name-only", "HEAD").splitlines())
    counts = Counter(path for path in listed.splitlines() if path in here)
    return max((count, path) for path, count in counts.items() if count <= CHANGES)[1]


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote as users have them, and the line to it."""

    name: str
    rtt_ms: float = 50
    object_info: bool = True
    filter: bool = True
    https: bool = False
    loss: float = 0.0


REMOTES = (
    Remote("as it is, 50 ms"),
    Remote("without object-info (as GitHub and GitLab)", object_info=False),
    Remote("without filter, object-info", object_info=False, filter=False),
    Remote("30 ms", rtt_ms=30),
    Remote("100 ms", rtt_ms=100),
    Remote("200 ms", rtt_ms=200),
    Remote("HTTPS", https=True),
    Remote("1 % of packets lost", loss=0.01),
)
ON_REMOTES = (
    "git log --oneline",
    "git checkout -q HEAD~200",
    "git status",
    "grep -rc class django/db django/core",
)


def measure_remotes(source: Path, options: argparse.Namespace, scratch: Path) -> None:
    """Print the table of `REMOTES`: plain ``git http-backend`` behind the proxy."""
    kinds: list[type[Contender]] = [ArtifactFS, BloblessClone]
    print(f"| {source.stem} | " + " | ".join(f"`{kind.name}`" for kind in kinds) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    certificate = make_certificate(scratch)
    os.environ["GIT_SSL_CAINFO"] = str(certificate)
    for number, remote in enumerate(REMOTES):
        root = scratch / f"remote-{number}"
        root.mkdir()
        run_git("clone", "--quiet", "--bare", source, root / "r.git")
        allow = "true" if remote.filter else "false"
        run_git("-C", root / "r.git", "config", "uploadpack.allowFilter", allow)
        with (
            http_backend(root, certificate if remote.https else None) as backend,
            DelayProxy(("127.0.0.1", backend.port), rtt=remote.rtt_ms / 1000) as proxy,
        ):
            backend.object_info = remote.object_info
            proxy.loss = remote.loss
            url = f"{backend.scheme}://localhost:{proxy.port}/r.git"
            found = FirstMinute(proxy, url, "", scratch / f"trees-{number}", ON_REMOTES, ())
            found.requests = backend.seen  # of an encrypted line the proxy sees none
            for _ in range(options.runs):
                for kind in kinds:
                    found.measure(kind)
            print("\n".join(found.rows(kinds, f"{remote.name}: ")), flush=True)
        shutil.rmtree(root)


def make_certificate(folder: Path) -> Path:
    """A certificate of ``localhost`` with its key."""
    path = folder / "localhost.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    made = subprocess.run([*command, "-keyout", "-", "-out", "-"], check=True, capture_output=True)
    path.write_bytes(made.stdout)
    path.chmod(0o600)
    return path


def measure_repository(
    source: Path, path: str, options: argparse.Namespace, scratch: Path
) -> Iterator[str]:
    """The lines of the table of one repository, behind the bundled server."""
    kinds: list[type[Contender]] = [ArtifactFS, BloblessClone, PlainClone]
    if options.peer:
        Peer.program = options.peer.resolve()
        kinds.append(Peer)
    source = with_branches(source, options.branches, scratch)
    server = ArtifactsProcess(scratch / "server")
    server.start()
    try:
        url = server.create("first-minute", source).url
        with DelayProxy(("127.0.0.1", server.port), rtt=options.rtt / 1000) as proxy:
            found = FirstMinute(proxy, proxy.url(url), path, scratch / "trees")
            for number in range(options.runs):
                for kind in kinds:
                    if kind is not PlainClone or number == 0:
                        found.measure(kind)
    finally:
        server.stop()
    yield from found.table(kinds)


def main() -> None:
    """Run as ``scripts/benchmark --first-minute``."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark --first-minute", description=__doc__)
    parser.add_argument(
        "--repository",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a bare repository, measured after Django's history; can be given several times",
    )
    parser.add_argument("--no-django", action="store_true", help="do without Django's history")
    parser.add_argument("--branches", type=int, default=1_000, help="more of them (default: 1000)")
    parser.add_argument("--rtt", type=float, default=50, metavar="MS", help="default: 50")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path, metavar="PATH", help="another implementation")
    parser.add_argument("--remotes", action="store_true", help="other remotes and links instead")
    options = parser.parse_args()
    sources = [] if options.no_django else [django_history(DEFAULT_CACHE)]
    for source in (*sources, *options.repository):
        with tempfile.TemporaryDirectory(prefix="first-minute-") as folder:
            scratch = Path(folder)
            if options.remotes:
                measure_remotes(source, options, scratch)
                return
            print(
                f"\n### {source.absolute()}, {options.branches} more branches, {options.rtt:g} ms\n"
            )
            path = changed_file(source)
            for line in measure_repository(source, path, options, scratch):
                print(line, flush=True)


if __name__ == "__main__":
    main()
