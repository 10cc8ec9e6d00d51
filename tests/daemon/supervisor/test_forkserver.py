"""The fork server has everything loaded that a worker needs, so that workers share it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import ServedRepository

TALK = """
import json, sys
from artifactfs.daemon.supervisor.forkserver import preload
preload()
before = set(sys.modules)
import trio
from artifactfs.git.remote.opening import open_remote

async def main():
    remote = await open_remote(sys.argv[1], None, deadline_s=20)
    await remote.ls_refs(("refs/heads/",))
    await remote.aclose()

trio.run(main)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("kind", ["http", "local"])
def test_a_worker_imports_nothing_to_reach_its_remote(
    remote_repo: Callable[..., ServedRepository], small_repository: Path, kind: str
) -> None:
    """10 MB of each worker otherwise, as an import is not shared when it comes after the fork."""
    url = remote_repo().url if kind == "http" else str(small_repository)
    done = subprocess.run(
        [sys.executable, "-c", TALK, url], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == []
