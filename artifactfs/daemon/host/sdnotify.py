"""The service manager: its notification protocol (sd_notify(3): datagrams to ``$NOTIFY_SOCKET``),
and what it is about to do with us."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from pathlib import Path

from artifactfs.system.descriptors import attached

_ASK_S = 3.0

log = logging.getLogger(__name__)


def notify(*carried: int, wait_s: float = 0.0, **fields: str | int) -> bool:
    """Send e.g. ``READY=1`` as ``notify(READY=1)``. False where nobody asked for it, or the manager
    takes nothing within `wait_s`. `carried`: descriptors that it gets."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{key}={value}" for key, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(wait_s)
            sender.sendmsg([message.encode()], attached(*carried), 0, address)
    except OSError as error:
        log.warning("cannot notify the service manager: %s", error)
        return False
    return True


def watchdog_interval_s() -> float | None:
    """How often to send ``WATCHDOG=1``: half of what the service manager allows, None for never."""
    if os.environ.get("WATCHDOG_PID") not in (None, "", str(os.getpid())):
        return None
    try:
        allowed_us = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return allowed_us / 2e6 if allowed_us > 0 else None


def is_restarting() -> bool:
    """Whether the service manager ends us to start us anew. False where it cannot be asked. Blocks.

    It ends a service in the same way whatever comes next; its queue of jobs tells (systemd:
    ``JOB_RESTART`` until the service has stopped, then ``JOB_START``).
    """
    unit = _unit(Path("/proc/self/cgroup"))
    if "INVOCATION_ID" not in os.environ or unit is None:
        return False
    name, options = unit
    try:
        jobs = subprocess.run(
            ["systemctl", *options, "list-jobs", "--no-legend", "--plain", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("cannot ask the service manager: %s", error)
        return False
    return any(line.split()[1:3] == [name, "restart"] for line in jobs.stdout.splitlines())


def _unit(cgroup: Path) -> tuple[str, list[str]] | None:
    """The service that we are, and the option that names its manager."""
    try:
        path = cgroup.read_text().strip().rpartition(":")[2]
    except OSError:
        return None
    name = path.rpartition("/")[2]
    if not name.endswith(".service"):
        return None
    return name, ["--user"] if "/user@" in path else []
