"""A program with a workspace is killed at any moment: no commit of it is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.mount_table import mounts_below
from tests.e2e.processes import DaemonProcess
from tests.workspaces.conftest import git

MOMENTS = int(os.environ.get("ARTIFACT_FS_TEST_KILLS", "50"))
LATEST_S = 4.0

SCRIPT = """
import artifactfs, sys
remote, name = sys.argv[1:]
for turn in range(1000):
    with artifactfs.workspace(remote, name=f"{name}-{turn}", hydrate="none") as ws:
        for number in range(3):
            ws.write(f"{number}", f"{turn} {number}")
            print("made", ws.name, ws.commit(f"{turn} {number}"), flush=True)
            ws.write("not committed", "x")
        if turn % 2:
            ws.git("clean", "-fdq")
            ws.push(f"{ws.name}")
            print("pushed", ws.name, ws.head, flush=True)
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_commit_is_lost(daemon: DaemonProcess, remote: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    moments = random.Random(seed)
    acknowledged = 0
    for moment in range(MOMENTS):
        script = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(remote), f"kill-{moment}"],
            env=daemon.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        time.sleep(moments.uniform(0, LATEST_S))
        os.kill(script.pid, signal.SIGKILL)
        said = [line.split() for line in script.communicate()[0].splitlines()]
        said = [words for words in said if len(words) == 3]
        daemon.run("gc")
        assert mounts_below(daemon.mounts) == []
        assert list((daemon.state / "workspaces").glob("*")) == []
        for _, name, commit in said:
            gitdir = daemon.state / "repos" / name / "git"
            if gitdir.exists():
                branch = git(f"--git-dir={gitdir}", "rev-parse", "HEAD")
                git(f"--git-dir={gitdir}", "merge-base", "--is-ancestor", commit, branch)
            else:
                # Pushed, though it was killed before it could say so.
                git("-C", remote, "merge-base", "--is-ancestor", commit, name)
            acknowledged += 1
        for repo in daemon.json("list-repos"):
            daemon.run("remove-repo", repo["name"], "--force")
    print(f"{MOMENTS} kills, {acknowledged} commits made and found again")
    assert acknowledged or MOMENTS < 10
