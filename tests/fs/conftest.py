"""A small repository and mounts of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactfs.features import disabled_features
from tests.fs.mounting import Mount, git

COMMIT_TIME = 1_600_000_000


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``ARTIFACT_FS_DISABLE=extension`` runs the tests with plain pyfuse3: what users see is the
    same, the number of requests is not."""
    if item.get_closest_marker("extension") and "extension" in disabled_features():
        pytest.skip("plain pyfuse3 sends more requests")


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a bit of everything, committed at `COMMIT_TIME`."""
    work = tmp_path_factory.mktemp("origin")
    git("init", "-q", "-b", "main", cwd=work)
    (work / "README").write_text("hello\n")
    (work / "empty").touch()
    (work / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (work / "run.sh").chmod(0o755)
    (work / "link").symlink_to("README")
    (work / "big").write_bytes(bytes(range(256)) * 4096)
    for directory in ("src", "src/deep/er", "docs", "many"):
        (work / directory).mkdir(parents=True, exist_ok=True)
    for number in range(5):
        (work / f"src/f{number}.c").write_text(f"int f{number};\n")
    (work / "src/deep/er/x").write_text("deep\n")
    (work / "docs/a.txt").write_text("a\n")
    for number in range(300):
        (work / f"many/{number:03}").write_text(f"{number}\n")
    (work / os.fsdecode(b"odd-\xff\xfe")).write_text("odd\n")
    (work / ("n" * 255)).write_text("long\n")
    git("add", "-A", cwd=work)
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module", cwd=work)
    date = f"{COMMIT_TIME} +0000"
    git("commit", "-qm", "one", cwd=work, GIT_COMMITTER_DATE=date, GIT_AUTHOR_DATE=date)
    return work


_numbers = itertools.count()


@pytest.fixture
def new_mount(tmp_path: Path, origin: Path) -> Iterator[Callable[..., Mount]]:
    """Call it to get a state directory with a mount that is not started yet; `below` a folder."""
    mounts: list[Mount] = []

    def make(repository: Path = origin, commit: str = "HEAD", below: Path = tmp_path) -> Mount:
        oid = git("rev-parse", commit, cwd=repository).strip()
        mount = Mount(below / f"m{next(_numbers)}", repository / ".git", oid)
        mounts.append(mount)
        return mount

    yield make
    for mount in mounts:
        mount.open_gate()
        mount.kill()


@pytest.fixture
def new_shared_mount(open_folder: Path, new_mount: Callable[..., Mount]) -> Callable[[], Mount]:
    """The same for mounts that other users may use. The folder first: it goes after the mounts."""

    def make() -> Mount:
        mount = new_mount(below=open_folder)
        mount.directory.chmod(0o755)
        mount.config["settings"] = {"allow_other": True}
        return mount

    return make


@pytest.fixture
def mount(new_mount: Callable[..., Mount]) -> Mount:
    """A served mount of `origin`; nothing was read yet, all sizes are known."""
    return new_mount().start()


@pytest.fixture
def top(mount: Mount) -> Path:
    """The top of that mount."""
    return mount.path
