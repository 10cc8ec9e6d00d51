"""Mount many repositories by one daemon: how long it takes to start, what each weighs, how it ends.

    python benchmarks/many_mounts.py [--repos 50] [--files 300] [--json FILE]

Every repository is another one (other blobs), on the bundled server over a loopback socket.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fast_import import run_git
from benchmarks.make_synthetic import make_files
from tests.e2e.mount_table import descendants, memory_kib, mounts_below
from tests.e2e.processes import ArtifactsProcess, DaemonProcess

KIB = 1024


@dataclass(slots=True)
class Figures:
    """Seconds and KiB. `pss` is the proportional set size of each mount's worker."""

    repos: int
    files: int
    add_median_s: float = 0.0
    add_slowest_s: float = 0.0
    restart_s: float = 0.0
    read_all_s: float = 0.0
    stop_s: float = 0.0
    idle_pss: list[int] = field(default_factory=list)
    read_pss: list[int] = field(default_factory=list)
    others_pss: int = 0
    left_mounts: int = 0
    left_processes: int = 0


def workers(daemon: DaemonProcess) -> list[int]:
    """The processes with a mount: they hold /dev/fuse open."""
    return [pid for pid in descendants(daemon.pid) if _serves(pid)]


def _serves(pid: int) -> bool:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        return any(os.readlink(f"/proc/{pid}/fd/{name}") == "/dev/fuse" for name in names)
    except OSError:
        return False


def measure(repos: int, files: int, directory: Path) -> Figures:
    """Make the repositories, mount them, restart, read everything, stop."""
    figures = Figures(repos, files)
    server = ArtifactsProcess(directory / "server")
    server.start()
    daemon = DaemonProcess(Path(tempfile.mkdtemp(prefix="afs-many-", dir="/tmp")), watched=False)
    try:
        urls = []
        for number in range(repos):
            source = directory / f"source-{number}.git"
            make_files(source, files + number)
            urls.append(server.create(f"many-{number}", source).url)
        _mount(daemon, urls, figures)
        _read(daemon, repos, figures)
        everybody = [daemon.pid, *descendants(daemon.pid)]
        began = time.perf_counter()
        daemon.stop()
        figures.stop_s = time.perf_counter() - began
        figures.left_mounts = len(mounts_below(daemon.mounts))
        figures.left_processes = len(_still_running(everybody))
    finally:
        daemon.clean_up()
        shutil.rmtree(daemon.directory, ignore_errors=True)
        server.stop()
    return figures


def _still_running(pids: list[int]) -> list[int]:
    """Those that run a second later; one that waits to be reaped by init has ended."""
    time.sleep(1)
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def _mount(daemon: DaemonProcess, urls: list[str], figures: Figures) -> None:
    daemon.start()
    added = []
    for number, url in enumerate(urls):
        began = time.perf_counter()
        daemon.add_repo(f"many-{number}", url)
        added.append(time.perf_counter() - began)
    figures.add_median_s, figures.add_slowest_s = statistics.median(added), max(added)
    for number in range(len(urls)):
        daemon.wait_for(f"many-{number}", "history")
    daemon.stop()
    began = time.perf_counter()
    daemon.start()  # returns with READY=1: every mount is made
    figures.restart_s = time.perf_counter() - began
    assert len(mounts_below(daemon.mounts)) == len(urls)
    for number in range(len(urls)):
        daemon.wait_for(f"many-{number}", "index")
    figures.idle_pss = [memory_kib(pid, "Pss") for pid in workers(daemon)]
    others = {daemon.pid, *descendants(daemon.pid)} - set(workers(daemon))
    figures.others_pss = sum(memory_kib(pid, "Pss") for pid in others)


def _read(daemon: DaemonProcess, repos: int, figures: Figures) -> None:
    began = time.perf_counter()
    for number in range(repos):
        mount = daemon.mounts / f"many-{number}"
        names = [path for path in mount.rglob("*") if path.is_file()]
        assert len(names) >= figures.files + number
        assert sum(len(path.read_bytes()) > 0 for path in names) == len(names)
        assert run_git("-C", mount, "status", "--porcelain") == ""
    figures.read_all_s = time.perf_counter() - began
    figures.read_pss = [memory_kib(pid, "Pss") for pid in workers(daemon)]


def show(figures: Figures) -> str:
    """A table for people."""

    def mib(values: list[int]) -> str:
        return (
            f"median {statistics.median(values) / KIB:.1f}, largest {max(values) / KIB:.1f}, "
            f"all {sum(values) / KIB:.0f} MiB"
        )

    rows = {
        "repositories": f"{figures.repos} of {figures.files} files and more",
        "add-repo": f"median {figures.add_median_s:.2f} s, slowest {figures.add_slowest_s:.2f} s",
        "daemon start until all are mounted": f"{figures.restart_s:.2f} s",
        "PSS of a mount, idle": mib(figures.idle_pss),
        "everything read, git status in each": f"{figures.read_all_s:.1f} s",
        "PSS of a mount, after that": mib(figures.read_pss),
        "PSS of supervisor and fork server": f"{figures.others_pss / KIB:.1f} MiB",
        "daemon stop": f"{figures.stop_s:.2f} s",
        "left behind": f"{figures.left_mounts} mounts, {figures.left_processes} processes",
    }
    return "\n".join(f"{name:<38} {value}" for name, value in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repos", type=int, default=50)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="afs-many-") as directory:
        figures = measure(options.repos, options.files, Path(directory))
    print(show(figures))
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=2))


if __name__ == "__main__":
    main()
