"""The example scripts do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import DaemonProcess
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
def test_a_sandbox_works_in_its_repository(
    server: Server, git: Git, work: Path, name: str, idle_daemon: DaemonProcess
) -> None:
    """The remote and the token exactly as the create call returned them; its commit is pushed."""
    made = server.create(name)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    places = {
        "ARTIFACT_FS_ROOT": str(idle_daemon.state),
        "ARTIFACT_FS_MOUNT_ROOT": str(idle_daemon.mounts),
    }
    work_there = "cat src/app.py && git log --oneline | wc -l && git status -s"
    shown = run_example(
        server,
        "sandbox_with_mount.py",
        *["--", "sh", "-c", f"{work_there} && git commit -q --allow-empty -m Sandbox"],
        ARTIFACTS_GIT_REMOTE=made["remote"],
        ARTIFACTS_TOKEN=made["token"],
        **places,
    )
    idle_daemon.run("daemon", "stop")
    assert "print('two')\n2\n" in shown
    git("clone", "-q", with_token(made["remote"], made["token"]), "again", cwd=work.parent)
    assert git("log", "-1", "--format=%s", cwd=work.parent / "again").strip() == "Sandbox"


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
def test_a_fleet(server: Server, idle_daemon: DaemonProcess) -> None:
    """As the README has it, word for word: twenty tasks, of which one fails its test."""
    run_example(server, "forks_from_baseline.py", "One")  # makes the baseline
    readme = (EXAMPLES.parent / "README.md").read_text()
    program = (EXAMPLES / "fleet.py").read_text().partition("import os\n")[2]
    assert program.strip() in readme
    places = {
        "ARTIFACT_FS_ROOT": str(idle_daemon.state),
        "ARTIFACT_FS_MOUNT_ROOT": str(idle_daemon.mounts),
    }
    table = run_example(server, "fleet.py", **places).splitlines()
    idle_daemon.run("daemon", "stop")
    assert len(table) == 21 and table[0].startswith("task")
    assert [line.split()[1] for line in table[1:]] == ["0"] * 13 + ["1"] + ["0"] * 6
    for number, merged in ((0, True), (13, False), (19, True)):
        path = f"notes/{number}.md"
        answer = server.api("GET", "/namespaces/tasks/repos/baseline/file", path=path)
        assert answer.is_success is merged, path
