"""A sandbox that gets its repository by environment variables and works in it.

Whoever starts the sandbox creates or forks a repository and passes on what the call returned:

    ARTIFACTS_GIT_REMOTE=http://127.0.0.1:8080/git/agents/task-1.git
    ARTIFACTS_TOKEN=art_v1_…

and inside it, as root or with a usable /dev/fuse:

    python sandbox_with_mount.py -- ls -l

The tree is there within a second, whatever the size of the repository; contents arrive when they
are read. Commits that the command has made are pushed, what it has not committed is pushed as a
snapshot. The token is on no command line, and the command does not get it.
"""

from __future__ import annotations

import os
import sys

import artifactfs


def main(command: list[str]) -> int:
    remote, token = os.environ["ARTIFACTS_GIT_REMOTE"], os.environ["ARTIFACTS_TOKEN"]
    with artifactfs.workspace(remote, token=token, on_exit="push") as ws:
        return ws.run(command).exit_code


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words[1:] if words[:1] == ["--"] else words or ["ls", "-l"]))
