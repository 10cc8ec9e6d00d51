"""What is measured in a working tree, and how one run goes."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import httpx

from benchmarks.contenders import ArtifactFS, Contender, Unhydrated, opened, run_to_the_end
from benchmarks.fast_import import quiet_git_environment, run_git
from tests.e2e.processes import ArtifactsProcess

COMMAND_LIMIT_S = 240
COLD_READS = 30
PAUSE_S = 0.1
"""Between two cold reads, so that what was read ahead for one does not slow the next."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A repository and what is looked at in it."""

    name: str
    source: Path
    readme: str
    grep_directory: str
    """Searched cold; some 1,000 files."""
    copied_directory: str
    """Copied by `cp -a`; some 500 files."""
    edited: str
    blamed: str | None = None
    """A file with some history."""
    large: str | None = None
    """A file of hundreds of megabytes."""
    releases: tuple[str, str] | None = None
    """Two tags to switch between; the first is the tree that was mounted."""


@dataclass(slots=True)
class Run:
    """Figures of one run: seconds, bytes or counts by measure; None where a command failed."""

    figures: dict[str, float | None] = field(default_factory=dict)

    @contextmanager
    def clock(self, measure: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.figures[measure] = time.perf_counter() - began


class ProxyProcess:
    """The delay proxy in a process of its own, so that nothing here slows it."""

    def __init__(self, target: str, rtt_ms: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.delay_proxy", target, "--rtt-ms", str(rtt_ms)],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.port = int(self._output.readline())

    def traffic(self) -> tuple[int, int]:
        """Return (requests, bytes of answers) so far."""
        requests, received = self._ask("stats").split()
        return int(requests), int(received)

    def requests(self) -> list[tuple[str, list[str]]]:
        """Return the command and the wanted oids of every request so far."""
        return [(command, wants) for command, wants in json.loads(self._ask("requests"))]

    def refuse(self) -> None:
        """Be like a server that was killed, until `accept`."""
        self._ask("refuse")

    def accept(self) -> None:
        self._ask("accept")

    def _ask(self, line: str) -> str:
        self._input.write(line + "\n")
        self._input.flush()
        return self._output.readline()

    def close(self) -> None:
        self._input.close()
        self._process.wait(10)


def shell(command: str, tree: Path) -> float | None:
    """Run `command` in `tree`; return the seconds it took, None when it failed."""
    environment = quiet_git_environment() | {"GIT_PAGER": "cat"}
    began = time.perf_counter()
    status = run_to_the_end(["sh", "-c", command], cwd=tree, env=environment)
    return time.perf_counter() - began if status == 0 else None


def measure_opening(
    run: Run, contender: Contender, workload: Workload, url: str, proxy: ProxyProcess
) -> Path:
    """From nothing to the first `ls` and the first file, and what the network carried."""
    before = proxy.traffic()
    began = time.perf_counter()
    tree = contender.open(url)
    os.listdir(tree)
    run.figures["first ls"] = time.perf_counter() - began
    (tree / workload.readme).read_bytes()
    run.figures["first file"] = time.perf_counter() - began
    requests, received = proxy.traffic()
    run.figures["requests until first file"] = requests - before[0]
    run.figures["bytes until first file"] = received - before[1]
    return tree


def measure_cold_reads(run: Run, workload: Workload, tree: Path) -> None:
    """The first read of a file in a directory where nothing was read, one after the other."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=tree, capture_output=True, check=True)
    chosen: dict[str, str] = {}
    for path in listed.stdout.decode(errors="surrogateescape").split("\0"):
        directory = os.path.dirname(path)
        # Many packages have the same empty __init__.py: after the first it would not be cold.
        shared = os.path.basename(path).startswith("__init__")
        if directory and not shared and not directory.startswith(workload.grep_directory):
            chosen.setdefault(directory, path)
    paths = list(chosen.values())
    times = []
    for path in paths[:: max(1, len(paths) // COLD_READS)][:COLD_READS]:
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        (tree / path).read_bytes()
        times.append(time.perf_counter() - began)
    if times:
        run.figures["cold read of a file (median of 30)"] = statistics.median(times)


def commit_command(workload: Workload) -> str:
    return (
        f"echo '# line' >> {workload.edited} && git -c user.name=b -c user.email=b@example.org"
        " commit -qam bench"
    )


def measure_git_at_once(
    run: Run, contender: Contender, workload: Workload, tree: Path, proxy: ProxyProcess
) -> None:
    """Git where hardly any content is here: what it takes, and what it downloads."""
    figures = run.figures
    figures["git log at once"] = shell("git log --oneline | wc -l", tree)
    contender.settle()
    requests, _ = proxy.traffic()
    figures["git status, first"] = shell("git status", tree)
    figures["git status, second"] = shell("git status", tree)
    figures["requests of both"] = proxy.traffic()[0] - requests
    figures["git diff, first"] = shell("git diff", tree)
    figures["git diff"] = shell("git diff", tree)
    _, received = proxy.traffic()
    figures["commit of one line, nothing here"] = shell(commit_command(workload), tree)
    figures["bytes of that commit"] = proxy.traffic()[1] - received
    if workload.blamed is not None:
        figures["git blame, nothing here"] = shell(f"git blame {workload.blamed}", tree)


def measure_large_file(run: Run, tree: Path, name: str) -> None:
    """The file comes; then it is read with nothing in memory, as a whole and here and there."""
    path = tree / name
    with run.clock("large file, first read"):
        read_all(path)
    drop_caches()
    with run.clock("large file, sequential"):
        read_all(path)
    drop_caches()
    rng = random.Random(1)
    with run.clock("large file, 200 random reads of 4 KB"), path.open("rb", buffering=0) as file:
        for _ in range(200):
            os.pread(file.fileno(), 4096, rng.randrange(path.stat().st_size) & ~4095)


def read_all(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def drop_caches() -> None:
    """Have the kernel forget what it read, if we may; else the reads are warm for everybody."""
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1\n")


def measure_commands(run: Run, contender: Contender, workload: Workload, tree: Path) -> None:
    """Every command, cold ones first. What is warm was run twice before: after reading a file for
    the first time, the kernel asks once more for its atime."""
    figures = run.figures
    measure_cold_reads(run, workload, tree)
    for name, command in (
        ("find, first", "find . -path ./.git -prune -o -print"),
        ("find, second", "find . -path ./.git -prune -o -print"),
        ("find, warm", "find . -path ./.git -prune -o -print"),
        ("ls -lR, first", "ls -lR ."),
        ("ls -lR, warm", "ls -lR ."),
        ("grep -r, cold", f"grep -r zzzabsent {workload.grep_directory}; true"),
        ("grep -r, second", f"grep -r zzzabsent {workload.grep_directory}; true"),
        ("grep -r, warm", f"grep -r zzzabsent {workload.grep_directory}; true"),
        ("git log -20 --stat", "git log -20 --stat"),
    ):
        figures[name] = shell(command, tree)


def measure_changes(run: Run, contender: Contender, workload: Workload, tree: Path) -> None:
    """Commands that write; the tree is whole by now."""
    figures = run.figures
    figures["cp -a"] = shell(f"cp -a {workload.copied_directory} zz-copy", tree)
    shell("rm -rf zz-copy", tree)
    if workload.releases is not None:
        here, other = workload.releases
        figures["switch to another release"] = shell(contender.switch_command(other), tree)
        figures["switch back"] = shell(contender.switch_command(here), tree)
        figures["git status after switch"] = shell("git status", tree)
    figures["commit of one line"] = shell(commit_command(workload), tree)
    figures["whole tree: grep -r, warm"] = None
    for _ in range(3):
        figures["whole tree: grep -r, warm"] = shell("grep -r zzzabsent . ; true", tree)
    figures["whole tree: git status"] = shell("git status", tree)


def pkt_line(text: str) -> bytes:
    return f"{len(text) + 5:04x}{text}\n".encode()


def fetch_root_tree(url: str, source: Path) -> float:
    """Seconds that one raw protocol v2 fetch takes whose only want is the root tree."""
    tree = run_git("-C", source, "rev-parse", "HEAD^{tree}").strip()
    userinfo, _, rest = url.partition("://")[2].partition("@")
    user, _, password = userinfo.partition(":")
    body = pkt_line("command=fetch") + b"0001" + pkt_line("ofs-delta") + pkt_line("no-progress")
    body += pkt_line(f"want {tree}") + pkt_line("done") + b"0000"
    began = time.perf_counter()
    with httpx.stream(
        "POST",
        f"http://{rest}/git-upload-pack",
        content=body,
        auth=(user, unquote(password)),
        headers={
            "Git-Protocol": "version=2",
            "Content-Type": "application/x-git-upload-pack-request",
        },
        timeout=COMMAND_LIMIT_S,
    ) as answer:
        answer.raise_for_status()
        received = sum(len(chunk) for chunk in answer.iter_raw())
    assert received > 1000, "no pack came"
    return time.perf_counter() - began


def fetch_in_one_batch(url: str, directory: Path, workload: Workload) -> float:
    """Seconds that `git fetch` takes for the blobs that the cold grep reads, in one request."""
    listed = run_git("-C", workload.source, "ls-tree", "-r", "HEAD", workload.grep_directory + "/")
    oids = sorted({line.split()[2] for line in listed.splitlines()})
    run_git("clone", "--quiet", "--no-checkout", "--filter=blob:none", url, directory)
    command = ["git", "-C", str(directory), "-c", "fetch.negotiationAlgorithm=noop", "fetch"]
    command += ["--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "--stdin"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "origin"],
        input="\n".join(oids).encode(),
        env=quiet_git_environment(),
        check=True,
        timeout=COMMAND_LIMIT_S,
    )
    took = time.perf_counter() - began
    shutil.rmtree(directory)
    return took


def run_once(
    kind: type[Contender],
    directory: Path,
    server: ArtifactsProcess,
    workload: Workload,
    url: str,
    rtt_ms: float,
) -> Run:
    """One contender, one workload, one delay, from nothing to everything."""
    run = Run()
    proxy = ProxyProcess(f"127.0.0.1:{server.port}", rtt_ms)
    through = url.replace(f"127.0.0.1:{server.port}", f"127.0.0.1:{proxy.port}")
    try:
        with opened(kind, directory) as contender:
            tree = measure_opening(run, contender, workload, through, proxy)
            measure_git_at_once(run, contender, workload, tree, proxy)
            measure_commands(run, contender, workload, tree)
            if workload.large is not None:
                measure_large_file(run, tree, workload.large)
            run.figures |= {name: float(size) for name, size in contender.memory().items()}
            with run.clock("everything hydrated after that"):
                contender.hydrate()
            measure_changes(run, contender, workload, tree)
            requests, received = proxy.traffic()
            run.figures["requests, all"] = requests
            run.figures["bytes downloaded, all"] = received
            run.figures["bytes on disk"] = contender.disk()
            memory = contender.memory()
            run.figures |= {f"{name}, at the end": float(size) for name, size in memory.items()}
        if kind is ArtifactFS:
            measure_full_hydration(run, directory, workload, through)
    finally:
        proxy.close()
    return run


def measure_full_hydration(run: Run, directory: Path, workload: Workload, url: str) -> None:
    """Two fresh mounts of which everything is asked for, and the raw fetch beside it: one whose
    history is here, as the raw fetch needs none, and one that is being prepared in every way."""
    run.figures["raw fetch of the root tree"] = fetch_root_tree(url, workload.source)
    name = "git fetch of what the cold grep reads"
    run.figures[name] = fetch_in_one_batch(url, directory, workload)
    kinds = {"full hydration": Unhydrated, "full hydration, with history": ArtifactFS}
    for figure, kind in kinds.items():
        with opened(kind, directory) as contender:
            contender.open(url)
            if kind is Unhydrated:
                contender.settle()
            with run.clock(figure):
                contender.hydrate()
