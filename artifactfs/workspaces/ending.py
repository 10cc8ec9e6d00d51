"""How a workspace ends: its work is pushed, kept or given up, and never silently gone.

A workspace is kept on the disk unless something is done: pushing it or giving it up is an action.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from artifactfs.daemon.control.client import DaemonNotRunning
from artifactfs.daemon.repositories.housekeeping import unmount_here
from artifactfs.errors import ArtifactFSError, MountError, NotRegistered, StateError
from artifactfs.paths import StateLayout
from artifactfs.workspaces.mounting import REQUEST_S, Daemon
from artifactfs.workspaces.ownership import Claim, abandoned
from artifactfs.workspaces.results import Unsaved, UnsavedWork
from artifactfs.workspaces.workspace import Workspace

OnExit = Literal["push", "keep", "refuse", "discard"]


def end(
    workspace: Workspace, claim: Claim, daemon: Daemon, on_exit: OnExit, *, failed: bool
) -> bool:
    """Leave it. After an error (`failed`), ``push`` and ``refuse`` are ``keep``: nothing half done
    is published. Whether it is kept. Raises: UnsavedWork, and what pushing raises; it is kept then.
    """
    if on_exit == "discard":
        daemon.remove(workspace.name, force=True)
        claim.release()
        return False
    look = workspace.unsaved
    if on_exit == "push" and not failed:
        look = partial(_save, workspace)
    error: ArtifactFSError | None = None
    unsaved: Unsaved | None = None
    try:
        unsaved = _give_up(daemon, workspace.name, look)
        if not unsaved:
            claim.release()
            return False
    except ArtifactFSError as reason:
        error = reason
    try:
        daemon.unmount(workspace.name)
        claim.release()
    except ArtifactFSError as reason:  # the daemon is gone: gc will see to it
        error = error or reason
    if on_exit == "refuse" and not failed and unsaved:
        raise UnsavedWork(f"{unsaved} would be lost", hint=how_to_get_back(workspace.name))
    what = str(unsaved) if unsaved is not None else "its work"
    print(
        f"{workspace.name}: kept {what} of {workspace.path}; {how_to_get_back(workspace.name)}",
        file=sys.stderr,
    )
    if error is not None and not failed:
        raise error
    return True


def how_to_get_back(name: str) -> str:
    return f"back with: artifact-fs remount {name}"


def _save(workspace: Workspace) -> Unsaved:
    """Push commits to the branch, and what is not committed as a snapshot. What is left."""
    unsaved = workspace.unsaved()
    if not unsaved:
        return unsaved
    if unsaved.commits:
        workspace.push(workspace.branch or f"artifact-fs/{workspace.name}")
    for snapshot in workspace.snapshots():
        if not snapshot.pushed:
            workspace.push_snapshot(snapshot)
    if unsaved.changes:
        pushed = workspace.snapshot(message=f"Not committed in {workspace.name}", push=True)
        print(
            f"{workspace.name}: pushed what was not committed as the snapshot {pushed.name}",
            file=sys.stderr,
        )
    left = workspace.unsaved()
    return Unsaved((), left.commits, left.snapshots, left.stashes)


def _give_up(daemon: Daemon, name: str, look: Callable[[], Unsaved]) -> Unsaved:
    """Remove it where there is nothing to lose; else what there is.

    What still runs in it may go on writing: it loses the mount before the last look.
    """
    if unsaved := look():
        return unsaved
    try:
        daemon.remove(name, force=False)
    except (MountError, StateError):
        daemon.unmount(name)
        daemon.mount_again(name, None, deadline_s=REQUEST_S)
        if unsaved := look():
            return unsaved
        daemon.remove(name, force=False)
    return Unsaved()


def collect(state: StateLayout) -> list[dict[str, Any]]:
    """Unmount what killed programs have left, and delete what of it has nothing to lose.

    Raises: ArtifactFSError. Each: ``name``, and ``kept``, what it holds, or None where deleted.
    """
    done = []
    for claim in abandoned(state):
        left_well = False
        try:
            done.append({"name": claim.name, "kept": _collect(Daemon(state), claim.name)})
            left_well = True
        finally:
            claim.release(left_well=left_well)
    return done


def _collect(daemon: Daemon, name: str) -> str | None:
    try:
        status = daemon.status(name)
    except DaemonNotRunning:
        with suppress(NotRegistered):
            unmount_here(daemon.state, name)
            return "its work"
        return None
    if status is None:
        return None  # it was being added, or removed
    unsaved: Unsaved | None = None
    with suppress(ArtifactFSError):
        if status["state"] != "mounted":
            daemon.mount_again(name, None, deadline_s=REQUEST_S)
        workspace = Workspace(daemon, name, status["mount_point"], None, author=None)
        unsaved = _give_up(daemon, name, workspace.unsaved)
        if not unsaved:
            return None
    daemon.unmount(name)
    return str(unsaved) if unsaved else "its work"
