"""The example scripts do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.running import ACCOUNT, Git, Server, with_token

EXAMPLES = Path(__file__).parents[3] / "examples"


def run_example(server: Server, script: str, *arguments: str, **extra: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ARTIFACTS_URL": server.url,
            "ARTIFACTS_ACCOUNT": ACCOUNT,
            "ARTIFACTS_API_TOKEN": server.api_token,
            **extra,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_repository_for_each_agent(server: Server) -> None:
    first = run_example(server, "repo_per_agent.py", "ann")
    assert "agent-ann: created" in first
    assert "is there already" in run_example(server, "repo_per_agent.py", "ann")


def test_forks_from_a_baseline(server: Server) -> None:
    lines = run_example(server, "forks_from_baseline.py", "One", "Two").splitlines()
    assert len(lines) == 2
    assert "['Two', 'Baseline'] from artifacts:tasks/baseline" in lines[1]


def test_notes_beside_commits(server: Server) -> None:
    shown = run_example(server, "notes_beside_commits.py")
    assert "six times seven" in shown and "result: tests passed" in shown


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
def test_a_sandbox_mounts_its_repository(server: Server, git: Git, work: Path, name: str) -> None:
    """The remote and the token exactly as the create call returned them."""
    made = server.create(name)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    shown = run_example(
        server,
        "sandbox_with_mount.py",
        *["--", "sh", "-c", "cat src/app.py && git log --oneline | wc -l && git status -s"],
        ARTIFACT_REMOTE=made["remote"],
        ARTIFACT_TOKEN=made["token"],
    )
    assert "print('two')\n2\n" in shown
