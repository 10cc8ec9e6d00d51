"""Git commands of users beside those of the daemon: none waits for the other for ever."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.fast_import import quiet_git_environment
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.processes import DaemonProcess, ServedRepository

RUNS = 1_000
AT_ONCE = 8
ANSWERS_WITHIN_S = 120.0
COMMANDS = (
    ("log", "--oneline", "--", "src/file{0}"),
    ("log", "-p", "--", "src/file{0}"),
    ("blame", "src/file{0}"),
    ("log", "--stat", "-20"),
    ("show", "--stat", "HEAD~{0}"),
    ("status", "--short"),
    ("log", "--follow", "-p", "--", "src/file{0}"),
)


@pytest.fixture
def changing(tmp_path: Path) -> Path:
    """Ten files, each of which changes in six commits."""
    work, bare = tmp_path / "work", tmp_path / "changing.git"
    environment = quiet_git_environment()

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", work, *arguments], check=True, env=environment)

    (work / "src").mkdir(parents=True)
    git("init", "-q", "-b", "main")
    for number in range(60):
        (work / f"src/file{number % 10}").write_text(f"line {number}\n" * 40)
        git("add", ".")
        git("commit", "-qm", f"change {number}")
    subprocess.run(["git", "clone", "-q", "--bare", work, bare], check=True, env=environment)
    return bare


@pytest.mark.long
def test_a_thousand_runs_over_a_slow_link(
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
    changing: Path,
) -> None:
    """`daemon` checks besides that no process of its own asks for something in the mount."""
    mount = daemon.add_repo("work", proxy.url(remote_repo(changing).url))
    daemon.wait_for("work", "history")
    proxy.rtt = 0.05
    numbers = itertools.count()

    def run(_: int) -> str | None:
        number = next(numbers)
        if number % 50 == 49:
            daemon.run("evict-cache", "--max-bytes", "0")  # so that contents come again
        words = COMMANDS[number % len(COMMANDS)]
        command = ["git", "-C", str(mount), *(word.format(number % 10) for word in words)]
        return outcome(command)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        failures = [failure for failure in pool.map(run, range(RUNS)) if failure]
    assert failures == []


def outcome(command: list[str]) -> str | None:
    """What was wrong with a run. One that hangs is left behind: it may not die."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=quiet_git_environment(),
        start_new_session=True,
    )
    try:
        _, stderr = process.communicate(timeout=ANSWERS_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        time.sleep(1)
        state = "dies of SIGKILL" if process.poll() is not None else "does not die"
        return f"{command} hangs, and {state}"
    return None if process.returncode == 0 else f"{command}: {stderr.decode()[-200:]}"
