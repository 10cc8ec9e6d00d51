"""A daemon for whoever wants to mount something and finds none running."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from artifactfs.daemon.control.client import ControlClient, DaemonNotRunning
from artifactfs.daemon.control.remote_argument import without_tokens
from artifactfs.errors import DaemonError
from artifactfs.paths import StateLayout
from artifactfs.system.locks import is_locked

START_WAIT_S = 15.0
IDLE_END = "10m"
"""How long a daemon that nobody asked for stays after its last mount is gone."""
STARTER_VARIABLE = "ARTIFACT_FS_STARTED_FOR"
"""Tells a daemon that nobody asked for which command wanted one."""
_ASK_AGAIN_S = 0.02


def connected(state: StateLayout) -> ControlClient | None:
    """The daemon of a state root, None where none runs. Raises: DaemonError."""
    try:
        return ControlClient(state)
    except DaemonNotRunning:
        return None


def ensure_daemon(state: StateLayout, *, wanted_by: str = "mount") -> None:
    """Start a daemon of the user's own where none runs. Raises: DaemonError."""
    client = connected(state)
    if client is not None:
        client.close()
        return
    start_daemon(state, ["--exit-when-idle", IDLE_END], wanted_by=wanted_by)


def start_daemon(
    state: StateLayout, options: Sequence[str], *, wanted_by: str | None = None
) -> None:
    """Start a daemon in a session of its own; it logs to ``STATE/daemon.log``. Returns when it
    answers. Raises: DaemonError."""
    root = state.root
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = root / "daemon.log"
    command = [sys.executable, "-P", "-m", "artifactfs.cli.main", "--state-root", str(root)]
    environment = without_tokens(os.environ)
    for name in ("NOTIFY_SOCKET", STARTER_VARIABLE):
        environment.pop(name, None)
    if wanted_by is not None:
        environment[STARTER_VARIABLE] = wanted_by
    with open(log_path, "ab", opener=_private) as log:
        began_at = log.tell()
        process = subprocess.Popen(
            [*command, "daemon", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    end = time.monotonic() + START_WAIT_S
    while time.monotonic() < end:
        client = connected(state)
        if client is not None:
            client.close()
            return
        if process.poll() is not None and not is_locked(state.lock):
            raise _not_started(
                log_path, began_at
            )  # else another was faster, and is about to listen
        time.sleep(_ASK_AGAIN_S)
    raise DaemonError("the daemon does not answer", hint=f"see {log_path}")


def _not_started(log_path: Path, began_at: int) -> DaemonError:
    """The error that the daemon itself ended with, as far as it wrote one from `began_at` on."""
    with open(log_path, encoding="utf-8", errors="replace") as log:
        log.seek(began_at)
        written = log.read()
    causes = re.findall(r"^error: (.*)$", written, re.MULTILINE)
    hints = re.findall(r"^hint: (.*)$", written, re.MULTILINE)
    cause = f": {causes[-1]}" if causes else ""
    return DaemonError(
        f"the daemon did not start{cause}", hint=hints[-1] if hints else f"see {log_path}"
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
