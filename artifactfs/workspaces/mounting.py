"""What a workspace asks of the daemon: mounting, unmounting, what would be lost, removing.

Blocks; every request has a deadline, and can be stopped (`running`).
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.client import ControlClient, DaemonNotRunning
from artifactfs.daemon.control.remote_argument import RemoteArgument
from artifactfs.daemon.control.starting import ensure_daemon
from artifactfs.errors import ArtifactFSError, DaemonError, InvalidInput, NotRegistered
from artifactfs.paths import StateLayout
from artifactfs.system.mountinfo import read_mountinfo
from artifactfs.workspaces.results import Usage
from artifactfs.workspaces.running import stoppable

REQUEST_S = 60.0
_ATTEMPTS = 3
"""A daemon that ends by itself may do so just when it is asked."""
_NAME_BYTES = 3


class Daemon:
    """The daemon of one state root."""

    def __init__(self, state: StateLayout) -> None:
        self.state = state

    def request(self, command: str, *, deadline_s: float = REQUEST_S, **args: Any) -> Any:
        """Ask the daemon that runs. Raises: its error, DaemonError, Stopped."""
        with ControlClient(self.state) as client, _within(client, deadline_s, command):
            return client.request(command, **args)

    def worker(
        self, name: str, request: str, *, deadline_s: float = REQUEST_S, **args: object
    ) -> Any:
        """Ask the process of one mount. Raises: as `request`."""
        return self.request("worker", deadline_s=deadline_s, name=name, request=request, args=args)

    def start_and_request(self, command: str, *, deadline_s: float, **args: object) -> Any:
        """Likewise, of a daemon that is started where none runs."""
        for attempt in range(_ATTEMPTS):
            ensure_daemon(self.state)
            try:
                return self.request(command, deadline_s=deadline_s, **args)
            except DaemonNotRunning:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    # -- one workspace -----------------------------------------------------------------------

    def add(
        self, settings: RepoSettings, remote: RemoteArgument, *, deadline_s: float
    ) -> dict[str, Any]:
        """Register and mount: ``mount_point`` and ``commit``. Raises: ArtifactFSError; then
        nothing is left of it."""
        added: dict[str, Any] = self.start_and_request(
            "add",
            deadline_s=deadline_s,
            settings=asdict(settings),
            secret=remote.secret,
        )
        return added

    def mount_again(
        self, name: str, remote: RemoteArgument | None, *, deadline_s: float
    ) -> dict[str, Any]:
        """Mount what was kept, with the credentials of `remote` if it has any."""
        if remote is not None and remote.secret["password"] is not None:
            self.start_and_request(
                "set-remote",
                deadline_s=deadline_s,
                name=name,
                remote=remote.url,
                secret=remote.secret,
                no_check=True,
            )
        mounted: dict[str, Any] = self.start_and_request(
            "remount", deadline_s=deadline_s, name=name
        )
        return mounted

    def status(self, name: str) -> dict[str, Any] | None:
        """None where it is not registered. Raises: DaemonError."""
        try:
            found: dict[str, Any] = self.request("status", name=name)[0]
        except NotRegistered:
            return None
        return found

    def losses(self, name: str) -> dict[str, int]:
        """How many ``unpushed`` commits, ``snapshots`` and ``stashes`` are only here."""
        found: dict[str, int] = self.worker(name, "losses")
        return found

    def unmount(self, name: str) -> None:
        """However busy it is: what still runs in it gets errors. What was written stays."""
        try:
            self.request("unmount", name=name)
        except ArtifactFSError:
            self.request("unmount", name=name, force=True)

    def remove(self, name: str, *, force: bool) -> None:
        """Unmount and delete. Unless forced, `git status` names nothing in it (the caller has
        looked). Raises: StateError where it has unpushed work, MountError where it is in use."""
        self.request("remove", name=name, force=force, changes=[])

    def usage(self, name: str) -> Usage:
        """Raises: DaemonError."""
        status = self.status(name) or {}
        directory = self.state.repo(name).directory
        pid = status.get("pid")
        received = (status.get("hydration") or {}).get("received_bytes") or 0
        return Usage(_own_memory(pid), _disk_bytes(directory), int(received))


@contextmanager
def _within(client: ControlClient, deadline_s: float, what: str) -> Iterator[None]:
    """Raises: DaemonError when the time is over, Stopped when somebody stops it."""
    over = threading.Event()

    def end() -> None:
        over.set()
        client.interrupt()

    timer = threading.Timer(deadline_s, end)
    timer.daemon = True
    timer.start()
    try:
        with stoppable(client.interrupt):
            yield
    except DaemonError as error:
        if over.is_set():
            raise DaemonError(
                f"{what}: not within {deadline_s:g} s", hint="artifact-fs status says why"
            ) from error
        raise
    finally:
        timer.cancel()


def new_name(remote: str) -> str:
    """A name for a workspace of `remote` that no other has."""
    last = re.split(r"[/:]", remote.rstrip("/"))[-1].removesuffix(".git")
    base = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", last).strip("-._")[:80] or "workspace"
    return f"{base}-{secrets.token_hex(_NAME_BYTES)}"


def checked_on_exit(word: str) -> str:
    """Raises: InvalidInput."""
    if word not in ("push", "keep", "refuse", "discard"):
        raise InvalidInput(f"on_exit={word!r}", hint="give push, keep, refuse or discard")
    return word


def _own_memory(pid: int | None) -> int:
    """PSS: what the process shares with others counts in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("Pss:")), "Pss: 0 kB")
    return int(found.split()[1]) << 10


def _disk_bytes(directory: Path) -> int:
    """Blocks of the files of one repository; the shared cache is not in it, nor what is mounted
    there, as the tree below an overlayfs is."""
    total, mounted = 0, {entry.mount_point for entry in read_mountinfo()}
    for folder, folders, names in os.walk(os.path.realpath(directory)):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in mounted]
        for name in names:
            with suppress(OSError):  # it has just gone
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
