"""What the kernel asks of a mount, and what an answer costs: wall time, CPU, requests by operation.

A mount without a network: every blob is here. python benchmarks/profile_requests.py --help
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contenders import run_to_the_end
from benchmarks.fast_import import quiet_git_environment, run_git
from benchmarks.make_synthetic import synthetic_repository
from tests.fs.mounting import Mount

TICKS = os.sysconf("SC_CLK_TCK")

VARIANTS: dict[str, dict[str, bool]] = {
    "as it is": {},
    "stock requests": {"plain": True},
    "stock loop": {"slow": True},
    "stock pyfuse3": {"plain": True, "slow": True},
}
"""`plain`: the kernel opens nothing by itself, no parallel look-ups (`extension` is off).
`slow`: each request waits in trio's loop (`fs/kernel/fastloop.py` is off)."""


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def shell(command: str) -> Callable[[Path], None]:
    def run(top: Path) -> None:
        environment = quiet_git_environment()
        assert run_to_the_end(["sh", "-c", command], cwd=top, env=environment) == 0, command

    return run


def write_files(top: Path) -> None:
    (top / "written").mkdir()
    for number in range(2_000):
        (top / "written" / f"{number}").write_bytes(b"x" * 2_000)


def overwrite(top: Path) -> None:
    with open(top / "written" / "large", "wb", buffering=0) as file:
        for _ in range(10_000):
            file.write(b"x" * 4_096)


LOADS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("stat of every file, first", shell("git ls-files -z | xargs -0 stat -c %s >/dev/null")),
    ("find, then", shell("find . >/dev/null")),
    ("find, warm", shell("find . >/dev/null")),
    ("ls -lR, warm", shell("ls -lR . >/dev/null")),
    ("grep -r, first", shell("grep -r zzzabsent . ; true")),
    ("grep -r, warm", shell("grep -r zzzabsent . ; true")),
    ("2,000 new files of 2 KB", write_files),
    ("40 MB in 4 KB writes", overwrite),
    ("rm -r of them", shell("rm -r written")),
)


def profile(repository: Path, variant: dict[str, bool], scratch: Path) -> list[list[str]]:
    """One row for each load: its name, ms, CPU ms, requests, µs of CPU for each, which."""
    commit = run_git("-C", repository, "rev-parse", "HEAD").strip()
    mount = Mount(scratch, repository, commit)
    mount.without(*(["extension"] if variant.get("plain") else []))
    rows = []
    try:
        mount.make_gitdir()
        mount.restart()
        if variant.get("slow"):
            mount.ask("slow")
        assert mount.process is not None
        pid = mount.process.pid
        for name, load in LOADS:
            before, cpu, began = mount.ask("requests"), cpu_s(pid), time.perf_counter()
            load(mount.path)
            took, used, after = time.perf_counter() - began, cpu_s(pid) - cpu, mount.ask("requests")
            asked = {key: after[key] - before.get(key, 0) for key in after}
            asked = {key: n for key, n in sorted(asked.items(), key=lambda kv: -kv[1]) if n}
            total = sum(asked.values())
            each = f"{used / total * 1e6:.0f}" if total > 500 else ""
            which = ", ".join(f"{n:,} {key}" for key, n in list(asked.items())[:9])
            rows.append(
                [name, f"{took * 1e3:,.0f}", f"{used * 1e3:,.0f}", f"{total:,}", each, which]
            )
    finally:
        mount.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    options = parser.parse_args()
    repository = synthetic_repository(options.files)
    for name in options.variant or VARIANTS:
        scratch = Path(tempfile.mkdtemp(prefix="afp-", dir="/tmp"))
        try:
            print(f"\n{name}\n| load | ms | CPU ms | requests | µs each | which |")
            print("|---|---:|---:|---:|---:|---|")
            for row in profile(repository, VARIANTS[name], scratch):
                print("| " + " | ".join(row) + " |", flush=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
