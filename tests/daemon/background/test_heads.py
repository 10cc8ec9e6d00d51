"""How far a branch is from its upstream, where git takes long to tell."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.background import jobs
from artifactfs.daemon.background.jobs import Jobs
from artifactfs.daemon.background.tasks import Background
from artifactfs.git.remote.arriving import ArrivingHistory
from artifactfs.git.repository.gitdir import mark_history_complete
from artifactfs.paths import RepoLayout


def test_the_status_does_not_wait_for_a_slow_count(
    small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "clone", "-q", str(small_repository), "clone"], cwd=tmp_path, check=True)
    git = ["git", "-C", str(tmp_path / "clone")]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Mine"], check=True)
    mark_history_complete(tmp_path / "clone" / ".git")
    counted, go_on = 0, trio.Event()
    count = jobs.ahead_behind

    async def slow(gitdir: Path, *pair: str) -> tuple[int, int] | None:
        nonlocal counted
        counted += 1
        await go_on.wait()
        return await count(gitdir, *pair)

    monkeypatch.setattr(jobs, "ahead_behind", slow)
    monkeypatch.setattr(jobs, "COUNT_WAIT_S", 0.1)
    unused: Any = None
    layout = RepoLayout(tmp_path / "state")
    layout.directory.mkdir()
    layout.gitdir.symlink_to(tmp_path / "clone" / ".git")

    async def main() -> None:
        background = Background("clone")
        ours = Jobs(
            unused,
            layout,
            RepoSettings(
                name="clone", remote="https://example.com/clone", mount_point=str(tmp_path)
            ),
            remotes=unused,
            odb=unused,
            hydrator=unused,
            filesystem=unused,
            background=background,
            following=unused,
            priming=unused,
            history=ArrivingHistory(layout.gitdir, unused, complete=True),
        )
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(background.run)
                for _ in range(2):
                    head, distance = await ours.head()
                    assert (head.branch, distance) == ("main", None)
                go_on.set()
                monkeypatch.setattr(jobs, "COUNT_WAIT_S", 50)
                assert (await ours.head())[1] == (1, 0)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert counted == 1
