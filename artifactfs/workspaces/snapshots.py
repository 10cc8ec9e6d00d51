"""Snapshots: the state of a workspace as a commit on a ref of its own.

A copy of the index is brought to what the working tree is (``GIT_INDEX_FILE``), so that neither the
index nor HEAD is touched; only what ``git status`` names is looked at. Ignored files are in no
snapshot.

``refs/artifactfs/snapshots/NAME`` is the snapshot, its parent is HEAD of then;
``refs/artifactfs/pushed/NAME`` says that the remote has it.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifactfs.errors import InvalidInput, StateError
from artifactfs.git.repository.refs import PUSHED, SNAPSHOTS
from artifactfs.workspaces.repository import NETWORK_S, GitRefused, Repository
from artifactfs.workspaces.results import Snapshot

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def take(repository: Repository, name: str | None, message: str) -> Snapshot:
    """Raises: GitRefused, InvalidInput; StateError where there is one of that name."""
    name = _checked(name or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}")
    parent, tree = repository.head(), tree_now(repository)
    parents = ("-p", parent) if parent is not None else ()
    who_and_when = repository.identity() | _date(repository)
    commit = repository.line("commit-tree", tree, *parents, "-m", message, more=who_and_when)
    try:
        repository.git("update-ref", SNAPSHOTS + name, commit, "0" * len(commit))
    except GitRefused as error:
        if find(repository, name) is None:
            raise
        raise StateError(f"there is a snapshot {name}", hint="give it another name") from error
    return Snapshot(name, SNAPSHOTS + name, commit, parent)


def _date(repository: Repository) -> dict[str, str]:
    """The variable by which a snapshot is younger than all others, which order them: git's dates
    are whole seconds. The author's date stays that of the clock. Raises: GitRefused."""
    arguments = ("--count=1", "--sort=-creatordate", "--format=%(creatordate:unix)")
    newest = repository.line("for-each-ref", *arguments, SNAPSHOTS)
    if not newest or int(newest) < int(time.time()):
        return {}
    return {"GIT_COMMITTER_DATE": f"@{int(newest) + 1} +0000"}


def tree_now(repository: Repository) -> str:
    """The working tree as a tree (hex) of the repository. Raises: GitRefused."""
    with _copied_index(repository) as more:
        repository.stage(more)
        # What is not here is on the remote: git need not look for each blob.
        return repository.line("write-tree", "--missing-ok", more=more)


@contextmanager
def _copied_index(repository: Repository) -> Iterator[dict[str, str]]:
    """The variables by which git uses a copy of the index, for the block."""
    index = repository.line("rev-parse", "--path-format=absolute", "--git-path", "index")
    with tempfile.TemporaryDirectory(prefix="artifact-fs-") as folder:
        copy = Path(folder, "index")
        if Path(index).exists():
            shutil.copyfile(index, copy)
        yield {"GIT_INDEX_FILE": str(copy)}


def push(repository: Repository, snapshot: Snapshot) -> Snapshot:
    """Give it to the remote, where any other workspace may restore it. Raises: GitRefused."""
    ref = snapshot.ref
    arguments = ("push", "-q", repository.remote(), f"{snapshot.commit}:{ref}")
    repository.git(*arguments, deadline_s=NETWORK_S)
    repository.git("update-ref", PUSHED + snapshot.name, snapshot.commit)
    return Snapshot(snapshot.name, ref, snapshot.commit, snapshot.parent, pushed=True)


def find(repository: Repository, name: str) -> Snapshot | None:
    """One that is here."""
    found = [each for each in listed(repository) if each.name == name]
    return found[0] if found else None


def listed(repository: Repository) -> tuple[Snapshot, ...]:
    """Those that are here, the oldest first. Raises: GitRefused."""
    form = "--format=%(refname) %(objectname) %(parent)"
    lines = repository.git("for-each-ref", form, "--sort=creatordate", SNAPSHOTS, PUSHED)
    entries = [line.split(" ") for line in lines.decode().splitlines()]
    pushed = {(ref.removeprefix(PUSHED), commit) for ref, commit, *_ in entries}
    found = []
    for ref, commit, *parents in entries:
        if ref.startswith(SNAPSHOTS):
            name = ref.removeprefix(SNAPSHOTS)
            parent = parents[0] if parents and parents[0] else None
            found.append(Snapshot(name, ref, commit, parent, (name, commit) in pushed))
    return tuple(found)


def fetch(repository: Repository, name: str) -> Snapshot:
    """One that the remote has. Raises: GitRefused, InvalidInput."""
    ref = SNAPSHOTS + _checked(name)
    try:
        repository.git(
            *("fetch", "-q", "--no-tags", "--no-write-fetch-head", repository.remote()),
            f"{ref}:{ref}",
            deadline_s=NETWORK_S,
        )
    except GitRefused as error:
        if "couldn't find remote ref" not in error.message:
            raise
        raise InvalidInput(f"neither here nor on the remote is a snapshot {name}") from error
    found = find(repository, name)
    if found is None:
        raise GitRefused(f"git fetch found no snapshot {name}")
    repository.git("update-ref", PUSHED + name, found.commit)
    return found


def restore(repository: Repository, snapshot: Snapshot) -> Snapshot:
    """Make HEAD and the working tree those of `snapshot`; ignored files stay as they are.

    What was there before is a snapshot, which is returned: nothing is lost by going back. The
    current branch moves with HEAD. Raises: GitRefused.
    """
    before = take(repository, None, f"Before {snapshot.name} was restored")
    # All of it in the index: then git removes what the snapshot does not have.
    repository.stage()
    repository.git("read-tree", "--reset", "-u", snapshot.commit, deadline_s=NETWORK_S)
    if snapshot.parent is not None:
        repository.git("update-ref", "-m", f"restore: {snapshot.name}", "HEAD", snapshot.parent)
        repository.git("read-tree", "-m", snapshot.parent)
        repository.git("update-index", "-q", "--refresh", codes=(0, 1))
    return before


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name or name.endswith((".lock", ".")):
        raise InvalidInput(
            f"{name!r} cannot name a snapshot",
            hint="use letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return name
