"""A supervisor's parts in this process, over real workers and a local remote."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifactfs.config import RepoSettings
from artifactfs.daemon.host import mounts
from artifactfs.paths import StateLayout


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository of a few files and two commits."""
    work = tmp_path_factory.mktemp("small")
    bare = work / "small.git"
    commands = (
        ["init", "-q", "-b", "main", "tree"],
        ["-C", "tree", "add", "-A"],
        ["-C", "tree", "commit", "-q", "-m", "First"],
        ["-C", "tree", "commit", "-q", "--allow-empty", "-m", "Second"],
        ["clone", "-q", "--bare", "tree", "small.git"],
    )
    (work / "tree" / "src").mkdir(parents=True)
    (work / "tree" / "README.md").write_text("# Small\n")
    (work / "tree" / "src" / "main.c").write_text("int main(void) { return 0; }\n")
    for command in commands:
        subprocess.run(["git", *command], cwd=work, check=True)
    return bare


@pytest.fixture
def state() -> Iterator[StateLayout]:
    """A state root with a short path; its mounts are cleared away."""
    root = Path(tempfile.mkdtemp(prefix="afs-daemon-", dir="/tmp"))
    layout = StateLayout(root / "state")
    layout.repos.mkdir(parents=True)
    yield layout
    mount_point = str(root / "mnt")
    while mounts.mounts_at(mount_point):
        mounts.detach(mount_point)
    shutil.rmtree(root)


@pytest.fixture
def settings(state: StateLayout, small_repository: Path) -> RepoSettings:
    mount_point = state.root.parent / "mnt"
    mount_point.mkdir()
    return RepoSettings(
        name="small", remote=str(small_repository), mount_point=str(mount_point), hydrate="none"
    )
