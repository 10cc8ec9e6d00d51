"""What the kernel knows about mounts, and how to get rid of those that a test left."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")


def mounts_below(directory: Path) -> list[tuple[Path, int]]:
    """Return (mount point, minor device number) of every FUSE mount below, the latest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if " - fuse" not in line or fields[3] != "/":  # bind mounts are on FUSE or in it
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        if Path(point).is_relative_to(directory):
            found.append((Path(point), int(fields[2].partition(":")[2])))
    return found[::-1]


def mounted_at(point: Path) -> bool:
    """Tell whether something is mounted exactly there, alive or dead."""
    return point in overlays_below(point) or any(found == point for found, _ in mounts_below(point))


def overlays_below(directory: Path) -> list[Path]:
    """The overlayfs mounts of ours below, the latest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - overlay artifact-fs " in line:
            point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4])
            if Path(point).is_relative_to(directory):
                found.append(Path(point))
    return found[::-1]


def times_mounted(point: Path) -> int:
    """How many mounts of ours, or overlayfs ones above them, are stacked there."""
    there = [found for found, _ in mounts_below(point)] + overlays_below(point)
    return there.count(point)


def clear_mounts(directory: Path) -> list[Path]:
    """Abort and unmount everything below `directory`; return what was there."""
    left = mounts_below(directory)
    for point in overlays_below(directory):
        subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)
    for point, minor in left:
        abort_connection(minor)
        subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)
    return [point for point, _ in left]


def abort_connection(minor: int) -> None:
    """End the FUSE connection, so that nobody hangs on it any longer."""
    if not any(CONNECTIONS.glob("*")):
        subprocess.run(
            ["mount", "-t", "fusectl", "none", str(CONNECTIONS)], check=False, capture_output=True
        )
    with contextlib.suppress(OSError):
        (CONNECTIONS / str(minor) / "abort").write_text("1")


def descendants(pid: int) -> list[int]:
    """Return the process ids of the children of `pid`, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def serving_process(pid: int, minor: int) -> int | None:
    """Return the process among `pid` and its descendants that has /dev/fuse open for `minor`."""
    holders = []
    for candidate in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{candidate}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{candidate}/fd/{descriptor}") == "/dev/fuse":
                        info = Path(f"/proc/{candidate}/fdinfo/{descriptor}").read_text()
                        found = re.search(r"fuse_connection:\s*(\d+)", info)
                        if found is None or int(found[1]) == minor:
                            holders.append(candidate)
    return holders[-1] if holders else None


def memory_kib(pid: int, key: str = "VmRSS") -> int:
    """Return a memory figure of `pid`: VmRSS, VmHWM of status, or Pss of smaps_rollup."""
    name = "smaps_rollup" if key == "Pss" else "status"
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{name}").read_text(), re.M)
    return int(found[1]) if found else 0
