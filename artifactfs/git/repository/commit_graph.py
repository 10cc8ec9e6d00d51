"""Git's commit-graph (gitformat-commit-graph(5)): with it `git log`, merge-base and ahead/behind of
a long history are several times faster.

Git holds ``commit-graph.lock`` for as long as it writes one, which may be minutes, and a `git gc`
that somebody starts meanwhile fails. So ours writes it into an object directory of its own, and it
is put in its place when it is there. Git works without one, so a failure (no space, say) is no
reason to fail.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import trio

from artifactfs.git.apart import environment_apart, quoted
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.repository.staging import remove_staging, staging_folder

_FOLDER = "commit-graph"
"""The object directory that it is written into."""

_DEADLINE_S = 600.0
_CHANGED_PATHS_DEADLINE_S = 3_600.0
_BLOOM_INDEX = b"BIDX"
_HEADER = 256
"""Bytes: 8 and 12 for each of at most some ten chunks."""

_Version = tuple[int, int]
"""Inode and ctime, in ns."""


async def write_commit_graph(gitdir: Path) -> None:
    """Of all that refs reach."""
    await _write(gitdir, deadline_s=_DEADLINE_S)


async def write_changed_paths(gitdir: Path) -> None:
    """One that says which paths each commit changed, in Bloom filters: `git log -- PATH` and
    `git blame` read few trees then. In the background: it reads all trees."""
    if not await trio.to_thread.run_sync(_has_changed_paths, gitdir):
        deadline = _CHANGED_PATHS_DEADLINE_S
        await _write(gitdir, "--changed-paths", deadline_s=deadline, background=True)


def _has_changed_paths(gitdir: Path) -> bool:
    """Whether there is such a commit-graph, or one of several files, which is not ours."""
    graph = _graph_in(gitdir / "objects")
    if graph.with_name("commit-graphs").exists():
        return True
    try:
        with graph.open("rb") as file:
            return _BLOOM_INDEX in file.read(_HEADER)
    except FileNotFoundError:
        return False


async def _write(gitdir: Path, *options: str, deadline_s: float, background: bool = False) -> None:
    with suppress(GitFailed, OSError):
        before = _version(_graph_in(gitdir / "objects"))
        folder = await trio.to_thread.run_sync(staging_folder, gitdir, _FOLDER)
        try:
            environment = await trio.to_thread.run_sync(_environment, gitdir, folder)
            await run_git(
                *("commit-graph", "write", "--reachable", *options),
                gitdir=gitdir,
                env=environment,
                deadline_s=deadline_s,
                background=background,
            )
            await trio.to_thread.run_sync(_put_in_place, gitdir, folder, before)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(remove_staging, folder)


def _environment(gitdir: Path, folder: Path) -> dict[str, str]:
    """Git writes into `folder`, and reads what it reads otherwise."""
    (folder / "info").mkdir()
    seen = environment_apart(gitdir)
    objects = seen.get("GIT_OBJECT_DIRECTORY") or str(gitdir.resolve() / "objects")
    more = seen.get("GIT_ALTERNATE_OBJECT_DIRECTORIES")
    alternates = f"{quoted(objects)}:{more}" if more else quoted(objects)
    return {
        "GIT_OBJECT_DIRECTORY": str(folder),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": alternates,
    }


def _put_in_place(gitdir: Path, folder: Path, before: _Version | None) -> None:
    """Unless somebody else has written one meanwhile, or is about to."""
    graph = _graph_in(gitdir / "objects")
    chain = graph.with_name("commit-graphs")  # of several files, which is not ours
    locked = graph.with_name("commit-graph.lock").exists()
    if _version(graph) == before and not locked and not chain.exists():
        graph.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # there is no commit yet
            os.replace(_graph_in(folder), graph)


def _graph_in(objects: Path) -> Path:
    return objects / "info" / "commit-graph"


def _version(file: Path) -> _Version | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns
