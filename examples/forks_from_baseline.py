"""One baseline, a fork for every task: forks share its objects and cost next to nothing.

python forks_from_baseline.py "fix the parser" "write the docs"
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from artifactfs.client import Artifacts, ArtifactsError, CreatedRepo


def remote_with_token(made: CreatedRepo) -> str:
    """The remote with the token as its password, for git."""
    return made.remote.replace("://", f"://x:{quote(made.token, safe='')}@", 1)


def git(*words: str | Path) -> None:
    identity = ["-c", "user.name=Agent", "-c", "user.email=agent@example.org"]
    subprocess.run(["git", *identity, *map(str, words)], check=True)


def baseline(artifacts: Artifacts) -> None:
    """Make the baseline once."""
    try:
        made = artifacts.create("baseline", description="What every task starts from")
    except ArtifactsError as error:
        if error.code == "ALREADY_EXISTS":
            return
        raise
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        git("init", "-q", "-b", "main", tree)
        (tree / "README.md").write_text("# Baseline\n")
        git("-C", tree, "add", "README.md")
        git("-C", tree, "commit", "-q", "-m", "Baseline")
        git("-C", tree, "push", "-q", remote_with_token(made), "main")


def work_on(artifacts: Artifacts, number: int, task: str) -> str:
    """Fork the baseline, do the task in a clone of the fork, push it; the fork's name."""
    fork = artifacts.repo("baseline").fork(f"task-{os.getpid()}-{number}", description=task)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("clone", "-q", "--filter=blob:none", remote_with_token(fork), tree)
        (tree / "TASK.md").write_text(f"{task}\n")
        git("-C", tree, "add", "TASK.md")
        git("-C", tree, "commit", "-q", "-m", task)
        git("-C", tree, "push", "-q", "origin", "HEAD")
    return fork.name


def main(tasks: list[str]) -> None:
    with Artifacts(
        os.environ["ARTIFACTS_URL"],
        os.environ["ARTIFACTS_ACCOUNT"],
        os.environ["ARTIFACTS_API_TOKEN"],
        namespace="tasks",
    ) as artifacts:
        baseline(artifacts)
        for number, task in enumerate(tasks):
            name = work_on(artifacts, number, task)
            repo = artifacts.repo(name)
            print(f"{name}: {[c.message for c in repo.log()]} from {repo.info().source}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["Fix the parser", "Write the docs"])
