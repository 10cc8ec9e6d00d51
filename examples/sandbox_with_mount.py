"""A sandbox that gets its repository by environment variables and mounts it.

Whoever starts the sandbox creates or forks a repository and passes on what the call returned:

    ARTIFACT_REMOTE=http://127.0.0.1:8080/git/agents/task-1.git
    ARTIFACT_TOKEN=art_v1_…

and inside it, as root or with a usable /dev/fuse:

    python sandbox_with_mount.py -- ls -l

The tree is there within a second, whatever the size of the repository; contents arrive when they
are read. The token goes to `artifact-fs` by its environment: it is on no command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "work"


@contextmanager
def daemon(state: Path) -> Iterator[dict[str, str]]:
    """A daemon of the sandbox's own; the environment in which `artifact-fs` finds it."""
    environment = {
        **os.environ,
        "ARTIFACT_FS_ROOT": str(state / "state"),
        "ARTIFACT_FS_MOUNT_ROOT": str(state / "mnt"),
    }
    environment.pop("ARTIFACT_TOKEN", None)
    with (state / "daemon.log").open("w") as log:
        process = subprocess.Popen(["artifact-fs", "daemon"], env=environment, stderr=log)
    try:
        yield environment
    finally:
        process.terminate()
        process.wait()


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder, daemon(Path(folder)) as environment:
        subprocess.run(
            ["artifact-fs", "add-repo", "--name", NAME, "--remote", os.environ["ARTIFACT_REMOTE"]],
            env={**environment, "ARTIFACT_FS_TOKEN": os.environ["ARTIFACT_TOKEN"]},
            check=True,
        )
        subprocess.run(["artifact-fs", "wait", "--name", NAME], env=environment, check=True)
        tree = Path(folder) / "mnt" / NAME
        return subprocess.run(command, cwd=tree, env=environment, check=False).returncode


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words[1:] if words[:1] == ["--"] else words or ["ls", "-l"]))
