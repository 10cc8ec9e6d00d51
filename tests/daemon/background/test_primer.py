"""The process beside a worker that writes the first index, as git sees what it has written."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from artifactfs.daemon.background.primer import ForkedPrimer, Primer
from artifactfs.errors import ArtifactFSError
from artifactfs.git.index.primer import encode_options
from artifactfs.system.processes import status_fields
from tests.e2e.processes import wait_until
from tests.git.pack_samples import git


@pytest.fixture
def gitdir(tmp_path: Path) -> Path:
    """Of a repository with two files and no index."""
    git(tmp_path, "init", "-q", "-b", "main", "repo")
    for name in ("one", "two"):
        (tmp_path / "repo" / name).write_text(name)
    git(tmp_path / "repo", "add", "-A")
    git(tmp_path / "repo", "commit", "-qm", "Both")
    (tmp_path / "repo" / ".git" / "index").unlink()
    return tmp_path / "repo" / ".git"


def options_of(gitdir: Path, tree: str = "HEAD^{tree}") -> dict[str, Any]:
    return encode_options(
        gitdir=gitdir,
        tree=bytes.fromhex(git(gitdir, "rev-parse", tree).decode()),
        worktree=gitdir.parent,
        sizes=None,
        uid=os.getuid(),
        gid=os.getgid(),
        time_ns=5,
        token="t",
        ino_secret=b"secret",
    )


def is_there(pid: int) -> bool:
    """Whether it runs: it may not have been waited for yet."""
    try:
        return b"Z" not in status_fields(pid)[b"State"]
    except OSError:
        return False


def written(primer: Primer, options: dict[str, Any]) -> dict[str, Any]:
    async def write() -> dict[str, Any]:
        await primer.begin(options)
        try:
            return await primer.write(need_attributes=True)
        finally:
            await primer.aclose()

    return trio.run(write)


@pytest.mark.parametrize("forked", [True, False])
def test_the_index_is_that_of_the_tree(gitdir: Path, forked: bool) -> None:
    process = ForkedPrimer.fork() if forked else None
    answer = written(Primer(process), options_of(gitdir))
    assert (answer["written"], answer["entries"]) == (True, 2)
    assert git(gitdir.parent, "ls-files").split() == [b"one", b"two"]
    assert process is None or not is_there(process.pid)


def test_one_that_was_killed_is_replaced(gitdir: Path) -> None:
    process = ForkedPrimer.fork()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert written(Primer(process), options_of(gitdir))["written"] is True
    assert git(gitdir.parent, "ls-files").split() == [b"one", b"two"]


@pytest.mark.parametrize("forked", [True, False])
def test_what_went_wrong_is_said(gitdir: Path, forked: bool) -> None:
    options = {**options_of(gitdir), "tree": "12" * 20}
    with pytest.raises(ArtifactFSError, match=r"object 1212121212\w+ is not here"):
        written(Primer(ForkedPrimer.fork() if forked else None), options)
    assert not list(gitdir.glob("index*"))


def test_it_ends_with_who_has_forked_it() -> None:
    """Also where that was killed, and had not asked it for anything."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        process = ForkedPrimer.fork()
        assert process is not None
        os.write(write, b"%d" % process.pid)
        signal.pause()
    number = int(os.read(read, 100))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: not is_there(number), "its end")
    for descriptor in (read, write):
        os.close(descriptor)
