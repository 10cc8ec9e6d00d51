"""A daemon that runs already: `daemon` goes on with it, and `daemon --background` starts one."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import click

from artifactfs.cli.terminal.context import connect, daemon, state
from artifactfs.daemon.control.starting import start_daemon
from artifactfs.errors import DaemonError

LOOK_EVERY_S = 0.2
SHOWN_S = 5.0
POLL_S = 0.02
ENDED_S = 90.0
READY_S = 60.0
"""So long `--background` waits for mounts; who looks into one that is cloned waits by itself."""


def started_for() -> str | None:
    """The command (``mount``, ``add-repo``) that has started the daemon of the state root; None
    where none runs, or one that was asked for."""
    client = connect()
    if client is None:
        return None
    with client:
        found: str | None = client.request("ping").get("started_for")
        return found


def can_go_on(command: str, options: list[str]) -> bool:
    """Whether a `daemon` with `options` goes on with the one that `command` has started.

    It does not where only a daemon of its own will do: then that of ``add-repo``, which was started
    for it, is ended. Raises: DaemonError where programs may work in its mounts.
    """
    managed = "NOTIFY_SOCKET" in os.environ  # the service manager watches us, no other process
    if not managed and not options:
        return True
    if command != "add-repo":
        without = "" if managed else f", without {' '.join(options)}"
        raise DaemonError(
            f"a daemon that `artifact-fs {command}` has started runs{without}",
            hint="artifact-fs daemon stop ends it and unmounts",
        )
    end_it()
    return False


def end_it() -> None:
    """End the daemon that runs, so that another can take its place. Raises: DaemonError."""
    with daemon() as client:
        pid = int(client.request("ping")["pid"])
        with suppress(DaemonError):  # it ends before it has answered
            client.request("end", again=False)
    end = time.monotonic() + ENDED_S
    while _lives(pid):
        if time.monotonic() > end:
            raise DaemonError(
                f"the daemon (pid {pid}) does not end", hint="artifact-fs doctor looks why"
            )
        time.sleep(POLL_S)


def take_over(mount_root: Path, log_level: str, cache_limit: int | None) -> int:
    """Let the daemon that another command started be the one that is wanted; its mounts stay.

    Returns its pid. Raises: DaemonError.
    """
    with daemon() as client:
        answer = client.request(
            "adopt", mount_root=str(mount_root), log_level=log_level, cache_limit=cache_limit
        )
    return int(answer["pid"])


def stay_with(pid: int, command: str) -> None:
    """Be in place of the daemon, which `command` has started: for as long as it lives, with its log
    on our stderr. A signal to us ends it, and so does our end, however we end."""
    log = state().root / "daemon.log"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    who = f"the daemon (pid {pid}) that artifact-fs {command} has started"
    with _shown(log):
        click.echo(f"going on with {who}; it logs to {log}, and here", err=True)
        while _lives(pid):  # also while it starts anew
            with suppress(DaemonError), daemon() as client:
                client.request("attend")
            time.sleep(POLL_S)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _shown(path: Path) -> Iterator[None]:
    """What comes to the end of a log in this block, also at its end, is shown on our stderr."""
    try:
        log = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115  # below
    except OSError:
        yield
        return
    with log:
        log.seek(0, os.SEEK_END)
        over = threading.Event()
        thread = threading.Thread(target=_show_what_comes, args=(log, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(SHOWN_S)


def _show_what_comes(log: TextIO, over: threading.Event) -> None:
    is_over = False
    while not is_over:
        is_over = over.wait(LOOK_EVERY_S)
        with suppress(OSError):
            shutil.copyfileobj(log, sys.stderr)
            sys.stderr.flush()


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
