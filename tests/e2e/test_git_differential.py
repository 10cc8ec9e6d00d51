"""The same day of work with git in the mount and in a plain clone, compared after each step."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.fast_import import FIRST_COMMIT_TIME, quiet_git_environment, run_git
from tests.e2e.comparison import tree
from tests.e2e.git_script import STEPS
from tests.e2e.processes import DaemonProcess, ServedRepository

STATE = """
git status --porcelain=v2 --branch; echo "→ $?"
git ls-files -s
git rev-parse HEAD^{tree}
git stash list --format=%gd
"""
"""What scripts ask for, in the forms that they read."""
LATER = FIRST_COMMIT_TIME + 1_000_000


@dataclass(slots=True)
class Side:
    """One of the two working trees."""

    top: Path
    origin: str
    scratch: Path
    submodule: Path

    def run(self, step: int, command: str) -> str:
        """Run a step; return everything it printed and its status, without names of places."""
        date = f"{LATER + 60 * step} +0000"
        environment = quiet_git_environment() | {
            "ORIGIN": self.origin,
            "SCRATCH": str(self.scratch),
            "SUB": str(self.submodule),
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_DATE": date,
            "GIT_PAGER": "cat",
            "LC_ALL": "C.UTF-8",
            # The automatic length depends on how many objects are here.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "core.abbrev",
            "GIT_CONFIG_VALUE_0": "12",
        }
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.top,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=100,
        )
        return self._neutral(done.stdout.decode(errors="surrogateescape")) + f"→ {done.returncode}"

    def _neutral(self, text: str) -> str:
        bare = self.origin.partition("://x:")[2].partition("@")[2]
        for place, name in (
            (self.origin, "ORIGIN"),
            (f"http://{bare}", "ORIGIN"),
            (str(self.top), "TOP"),
            (str(self.scratch), "SCRATCH"),
        ):
            text = text.replace(place, name)
        return text

    def step(self, number: int, command: str) -> tuple[str, str, object]:
        """Run a step. Return what it printed, what git says of the tree then, and the tree."""
        printed = self.run(number, command)
        return printed, self.run(0, STATE), tree(self.top)


@pytest.fixture
def submodule(tmp_path: Path) -> Path:
    source = tmp_path / "sub.git"
    work = tmp_path / "sub"
    run_git("init", "--quiet", "--bare", "--initial-branch=main", source)
    run_git("clone", "--quiet", source, work)
    (work / "sub.txt").write_text("submodule\n")
    run_git("-C", work, "add", ".")
    run_git("-C", work, "commit", "--quiet", "-m", "Sub")
    run_git("-C", work, "push", "--quiet", "origin", "HEAD:main")
    return source


def make_sides(
    tmp_path: Path, plain_url: str, mount: Path, mount_url: str, submodule: Path
) -> tuple[Side, Side]:
    run_git("clone", "--quiet", plain_url, tmp_path / "plain")
    sides = []
    for name, top, url in (("p", tmp_path / "plain", plain_url), ("m", mount, mount_url)):
        scratch = tmp_path / f"scratch-{name}"
        scratch.mkdir()
        sides.append(Side(top, url, scratch, submodule))
    return sides[0], sides[1]


def compare_steps(plain: Side, ours: Side) -> None:
    """Run every step on both sides. Raises: AssertionError that names the step."""
    with ThreadPoolExecutor(2) as pool:
        for number, command in enumerate(STEPS, 1):
            running = [pool.submit(side.step, number, command) for side in (plain, ours)]
            expected, result = (step.result() for step in running)
            assert result == expected, f"step {number}: {command}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("writes", ["fuse", "kernel"])
def test_git_does_in_the_mount_what_it_does_in_a_plain_clone(
    tmp_path: Path,
    daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    submodule: Path,
    writes: str,
) -> None:
    if writes == "kernel" and os.geteuid() != 0:
        pytest.skip("only root may mount an overlayfs")
    theirs, ours = remote_repo(), remote_repo()
    mount = daemon.add_repo("work", ours.url, "--writes", writes)
    compare_steps(*make_sides(tmp_path, theirs.url, mount, ours.url, submodule))
    fsck = subprocess.run(
        ["git", "-C", str(mount), "fsck"], capture_output=True, text=True, timeout=100
    )
    assert fsck.returncode == 0, fsck.stdout + fsck.stderr


def test_the_script_is_long_enough() -> None:
    assert sum(step.count("git ") for step in STEPS) >= 60
