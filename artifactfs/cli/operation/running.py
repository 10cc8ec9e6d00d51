"""A daemon that runs already: `daemon` goes on with it, and `daemon --background` starts one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from artifactfs.cli.terminal.context import connect, daemon, state
from artifactfs.daemon.control.starting import start_daemon
from artifactfs.errors import DaemonError
from artifactfs.system.locks import is_locked

LOOK_EVERY_S = 0.2
READY_S = 60.0
"""So long `--background` waits for mounts; who looks into one that is cloned waits by itself."""


def started_by_mount() -> bool:
    """Whether the daemon of the state root is one that `artifact-fs mount` started.

    Not under a service manager: it would watch a process that is not the daemon.
    """
    if "NOTIFY_SOCKET" in os.environ:
        return False
    client = connect()
    if client is None:
        return False
    with client:
        return client.request("ping").get("exit_when_idle") is not None


def take_over(mount_root: Path, log_level: str, cache_limit: int | None) -> int:
    """Let the daemon that `artifact-fs mount` started be the one that is wanted; its mounts stay.

    Returns its pid. Raises: DaemonError.
    """
    with daemon() as client:
        answer = client.request(
            "adopt", mount_root=str(mount_root), log_level=log_level, cache_limit=cache_limit
        )
    return int(answer["pid"])


def stay_with(pid: int) -> None:
    """As long as the daemon lives; a signal to us ends it."""
    log = state().root / "daemon.log"
    who = f"the daemon (pid {pid}) that artifact-fs mount has started"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    click.echo(f"going on with {who}; it logs to {log}", err=True)
    while is_locked(state().lock):
        time.sleep(LOOK_EVERY_S)


def _end(_number: int, _frame: object) -> None:
    with suppress(DaemonError), daemon() as client:
        client.request("end", again=False)


def in_background(options: list[str]) -> None:
    """Start a daemon with these options; return when it answers. Raises: DaemonError."""
    if connect() is not None:
        raise DaemonError(
            f"a daemon runs for {state().root} already",
            hint="artifact-fs status asks it; to start it anew: artifact-fs daemon restart",
        )
    start_daemon(state(), options)


def tell_when_ready() -> None:
    """What is mounted, once that is known. Raises: DaemonError where something is not."""
    with daemon() as client:
        pid = client.request("ping")["pid"]
        repos: list[dict[str, Any]] = client.request("first-attempts", timeout_s=READY_S)
    failed = [repo for repo in repos if repo["error"] and repo["state"] != "mounted"]
    mounted = sum(repo["state"] == "mounted" for repo in repos)
    wanted = sum(repo["enabled"] for repo in repos)
    click.echo(f"the daemon (pid {pid}) runs; {mounted} of {wanted} repositories are mounted")
    if failed:
        first = failed[0]
        raise DaemonError(
            f"{first['name']} is not mounted: {first['error']['message']}",
            hint=first["error"].get("hint") or "artifact-fs status",
        )
