"""`scripts/test-on`, as far as it runs without an archive: what it refuses, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.processes import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "test-on"
ARCHIVE = ("--mirror", "http://127.0.0.1:9/debian")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make another system")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a cache of its own, and a `debootstrap` that can be written by the test."""
    programs = tmp_path / "programs"
    programs.mkdir()
    debootstrap(programs, "exit 1")
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }


def debootstrap(programs: Path, script: str) -> None:
    program = programs / "debootstrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def refusal(environment: dict[str, str], *words: str, user: int | None = None) -> str:
    """The one line that `test-on` with `words` fails with."""
    ran = subprocess.run(
        [SCRIPT, *words], env=environment, user=user, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert ran.stderr.count("error: ") == 1
    return ran.stderr.splitlines()[-1]


@as_root
def test_it_says_why_it_cannot_run(environment: dict[str, str]) -> None:
    assert "which system?" in refusal(environment)
    assert "debian99 is not a system" in refusal(environment, "debian99")
    assert "only with --all" in refusal(environment, "debian13", "--git", "1", "--git", "2")
    source = ("--git", "2.43", "--git-source", str(environment["XDG_CACHE_HOME"]))
    assert "is no clone of git's repository" in refusal(environment, "debian13", *source)
    assert "only root" in refusal(environment, "debian13", user=65534)


@as_root
def test_a_system_that_cannot_be_made_leaves_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    debootstrap(tmp_path / "programs", 'mkdir -p "$3"; echo "E: no archive"; exit 1')
    said = refusal(environment, "debian13", *ARCHIVE)
    assert said.startswith("error: debootstrap failed")
    cache = tmp_path / "cache" / "artifactfs-test-on"
    assert (cache / "debian13.log").read_text() == "E: no archive\n"
    assert not (cache / "debian13").exists()
    assert not list((cache / "runs").iterdir())


@as_root
def test_all_goes_on_where_it_was(environment: dict[str, str], tmp_path: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        words = [SCRIPT, "--all", "--git", "2.50", *ARCHIVE]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)

    ran = run()
    assert ran.returncode == 1
    rows = [row for row in ran.stdout.splitlines() if "error: debootstrap failed" in row]
    names = [row.split()[0] for row in rows]
    runs = {"debian12": ("2.47", "2.50"), "debian13": ("2.39", "2.50")}  # beside their own git
    common = ("", "-newest", "-plain")
    assert names == [
        f"{system}{run}"
        for system, gits in runs.items()
        for run in (*common, *(f"-{git}" for git in gits))
    ]
    (output,) = (tmp_path / "cache" / "artifactfs-test-on").glob("all-*")
    for name in names[:-1]:
        (output / f"{name}.exit").write_text("0\n")
        (output / f"{name}.row").write_text(f"{name} passed before\n")
    ran = run()
    assert ran.returncode == 1
    assert "error: debootstrap failed" in ran.stdout.splitlines()[-1]
    assert ran.stdout.count("passed before") == len(names) - 1


@as_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_and_no_mount_outlives_it(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    ready, mounted = tmp_path / "ready", tmp_path / "mounted"
    mounted.mkdir()
    nap = "sleep 1234.5 & sleep 1234.5"
    script = f"mount -t tmpfs tmpfs {mounted}; touch {mounted}/inside; touch {ready}; {nap}"
    debootstrap(tmp_path / "programs", script)
    running = subprocess.Popen([SCRIPT, "debian13", *ARCHIVE], env=environment)
    try:
        wait_until(ready.exists, "debootstrap runs")
        inside = wait_until(lambda: namespace_members(running.pid, at_least=3), "it naps")
    finally:
        running.send_signal(number)
        running.wait(60)
    assert running.returncode != 0
    wait_until(lambda: not [p for p in inside if Path("/proc", str(p)).exists()], "all have ended")
    assert not (mounted / "inside").exists()


def namespace_members(ancestor: int, at_least: int) -> list[int] | None:
    """The processes below `ancestor` that are in another namespace of processes than we are."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    below = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    own = os.readlink("/proc/self/ns/pid")
    found = [pid for pid in below if namespace_of(pid) not in (own, None)]
    return found if len(found) >= at_least else None


def namespace_of(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None  # it has ended
