"""What should be running: the daemon, its socket, the mounts. Nothing here can hang on them."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.messages import Message, decode, encode, socket_address
from artifactfs.daemon.host import overlayfs
from artifactfs.daemon.host.mounts import mounts_at
from artifactfs.daemon.host.redirects import redirects_of
from artifactfs.doctor.finding import Finding, Patient, note, ok, problem, warning
from artifactfs.doctor.machine import FUSECTL
from artifactfs.errors import CorruptData
from artifactfs.paths import StateLayout, real_path
from artifactfs.system.locks import is_locked
from artifactfs.system.mountinfo import MountEntry

START_DAEMON = "artifact-fs daemon  (where it is a service: systemctl start artifact-fs)"
PROBE_S = 3.0
"""A mount that has not answered by then hangs."""

RESTART_DAEMON = "systemctl restart artifact-fs  (or end it, then: artifact-fs daemon)"

_AS_WANTED = frozenset({"mounted", "unmounting", "unmounted"})
_DOWN = frozenset({"failed", "restarting", "not answering"})
"""States of a repository, as `Supervision` has them."""


def check_daemon(patient: Patient) -> Iterator[Finding]:
    """Is a daemon there, does it answer, did a dead one leave its socket?"""
    state = patient.state
    if not state.root.is_dir():
        return
    running = daemon_holds_lock(state)
    if not running and not state.control_socket.exists():
        if patient.repos:
            yield warning("daemon.not-running", "the daemon does not run", START_DAEMON)
        else:
            yield note("daemon.not-running", "the daemon does not run", START_DAEMON)
        return
    try:
        answer = ask(state.control_socket, "status", patient.deadline_s)
    except (FileNotFoundError, ConnectionRefusedError):
        if running:
            yield problem(
                "daemon.no-socket",
                f"a daemon holds {state.lock}, but nothing listens on {state.control_socket}",
                RESTART_DAEMON,
            )
        else:
            yield problem(
                "daemon.stale-socket",
                f"{state.control_socket} is left over from a daemon that did not end well",
                START_DAEMON,
            )
        return
    except TimeoutError:
        yield problem(
            "daemon.stuck",
            f"the daemon did not answer within {patient.deadline_s:.0f} s",
            RESTART_DAEMON,
        )
        return
    except (OSError, ValueError) as error:
        yield problem("daemon.unusable", f"the daemon cannot be asked: {error}", RESTART_DAEMON)
        return
    yield ok("daemon.running", f"the daemon answers on {state.control_socket}")
    if "error" in answer:
        message = answer["error"]["message"]
        yield warning("daemon.error", f"status failed: {message}", RESTART_DAEMON)
        return
    for repo in answer.get("result") or ():
        # Between two attempts it is "starting", "cloning" or "mounting", and says why.
        if repo.get("state") not in _AS_WANTED and (repo.get("error") or repo["state"] in _DOWN):
            why = (repo.get("error") or {}).get("message", "see its log")
            yield problem(
                "daemon.mount-failed",
                f"the daemon cannot serve {repo['name']}: {why}",
                f"artifact-fs remount --name {repo['name']} --restart --force",
                str(repo["name"]),
            )
        yield from _damage(repo)


def _damage(repo: Message) -> Iterator[Finding]:
    """What the worker of a mount has met."""
    for damage in repo.get("damage") or ():
        what = f"{damage['file']} {damage['what']}"
        if damage["mended"]:
            yield note("damage.mended", what, damage["mend"], str(repo["name"]))
        else:
            yield problem("damage.found", what, damage["mend"], str(repo["name"]))


def daemon_holds_lock(state: StateLayout) -> bool:
    """Tell whether a daemon of this state root is alive; its lock ends with it."""
    return is_locked(state.lock)


def ask(path: Path, command: str, deadline_s: float) -> Message:
    """One request of the control protocol, answered within `deadline_s` whatever is reported alive.

    Raises: OSError (TimeoutError among them) and ValueError for an answer that is no message.
    """
    end = time.monotonic() + deadline_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(deadline_s)
        with socket_address(path) as address:
            connection.connect(address)
        connection.sendall(encode({"id": 1, "command": command, "args": {}}))
        received = b""
        while True:
            while b"\n" not in received:
                connection.settimeout(max(0.001, end - time.monotonic()))
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionResetError("it closed the connection")
                received += chunk
            line, _, received = received.partition(b"\n")
            answer = decode(line)
            if "progress" not in answer:
                return answer


def check_mounts(patient: Patient) -> Iterator[Finding]:
    """Each mount point: mounted once, alive, answering; or free for a mount."""
    daemon = daemon_holds_lock(patient.state)
    found = {repo.name: mounts_at(repo.mount_point) for repo in patient.repos}
    probes = Probes(min(patient.deadline_s, PROBE_S))
    for repo in patient.repos:
        if found[repo.name]:
            probes.start(repo.mount_point)
            if overlayfs.is_ours(repo.mount_point):
                probes.start(str(patient.state.repo(repo.name).lower))
    for repo in patient.repos:
        here = found[repo.name]
        if not here:
            yield from _check_free(repo, daemon and repo.name not in patient.unmounted)
            continue
        if len(here) > 1:
            yield problem(
                "mount.stacked",
                f"{repo.mount_point} is mounted {len(here)} times over",
                f"umount -l {shlex.quote(repo.mount_point)} && "
                f"artifact-fs remount --name {repo.name}",
                repo.name,
            )
        place, mount = repo.mount_point, here[-1]
        if overlayfs.is_ours(place) and probes.fault(place) is None:
            # The kernel answers above whatever has become of our own mount below.
            place = str(patient.state.repo(repo.name).lower)
            mount = next(iter(mounts_at(place)), mount)
        yield _check_alive(repo, place, mount, daemon, probes)


def check_redirects(patient: Patient) -> Iterator[Finding]:
    """Bind mounts that should be over folders of a mounted tree (the mount itself is not asked)."""
    for repo in patient.repos:
        layout = patient.state.repo(repo.name)
        if not mounts_at(repo.mount_point):
            continue
        try:
            redirects = redirects_of(layout)
        except CorruptData as error:
            mend = error.hint or "move it away"
            yield problem("redirect.list-damaged", error.message, mend, repo.name)
            continue
        for one in redirects:
            folder = os.path.join(real_path(repo.mount_point), one.path)
            if one.method == "bind" and not mounts_at(folder, follow=False):
                yield problem(
                    "redirect.absent",
                    f"{folder} is not on the local disk: its bind mount is gone",
                    f"mount --bind {shlex.quote(str(layout.redirects / one.data))} "
                    f"{shlex.quote(folder)}",
                    repo.name,
                )


def _check_free(repo: RepoSettings, expected: bool) -> Iterator[Finding]:
    point = Path(repo.mount_point)
    if point.is_dir() and any(point.iterdir()):
        yield problem(
            "mount.point-not-empty",
            f"{point} is not mounted and not empty: a mount would hide what is there",
            f"mv {shlex.quote(str(point))} {shlex.quote(f'{point}.local')}",
            repo.name,
        )
    elif point.exists() and not point.is_dir():
        yield problem(
            "mount.point-not-a-directory",
            f"{point} is in the way: it is not a directory",
            f"mv {shlex.quote(str(point))} {shlex.quote(f'{point}.local')}",
            repo.name,
        )
    elif expected:
        yield warning(
            "mount.absent",
            f"{repo.name} is not mounted at {point}",
            f"artifact-fs remount --name {repo.name}",
            repo.name,
        )


def _check_alive(
    repo: RepoSettings, place: str, mount: MountEntry, daemon: bool, probes: Probes
) -> Finding:
    """`place` is what is asked: the mount point, or our own mount below the kernel's."""
    point = shlex.quote(repo.mount_point)
    fault = probes.fault(place)
    if fault is None:
        return ok("mount.alive", f"{repo.name} answers at {repo.mount_point}", repo.name)
    unmount = f"fusermount3 -uz {point}" if os.geteuid() else f"umount -l {point}"
    again = f"artifact-fs remount --name {repo.name}" if daemon else "artifact-fs daemon"
    if fault == errno.ENOTCONN:
        return problem(
            "mount.dead",
            f"{repo.mount_point} is a dead mount: its worker is gone",
            f"{unmount} && {again}",
            repo.name,
        )
    if fault == errno.ETIMEDOUT:
        abort = FUSECTL / str(mount.minor) / "abort"
        mend = f"echo 1 > {abort} && {unmount} && {again}"
        if daemon:
            mend = f"artifact-fs remount --name {repo.name} --restart --force"
        return problem(
            "mount.stuck",
            f"{repo.mount_point} did not answer within {probes.deadline_s:g} s"
            f"{_waiting(mount.minor)}",
            mend,
            repo.name,
        )
    return problem(
        "mount.failing",
        f"{repo.mount_point} cannot be listed: {os.strerror(fault)}",
        f"{unmount} && {again}",
        repo.name,
    )


def _waiting(minor: int) -> str:
    try:
        count = int((FUSECTL / str(minor) / "waiting").read_text())
    except (OSError, ValueError):
        return ""
    return f" ({count} requests wait)"


_PROBE = """
import errno, os, sys
for look in (os.listdir, os.statvfs):
    try:
        look(sys.argv[1])
    except OSError as e:
        if e.errno != errno.ENOSYS:
            sys.exit(e.errno)
"""


class Probes:
    """Lists mount points, each in a process of its own, all at once.

    `stat` and `ismount` succeed on a dead mount, and so does a listing that the kernel has kept;
    ``statfs`` tells. A process that waits for a worker in ``readdir`` may not die until it is
    answered, so it is left behind, not waited for.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._end = time.monotonic() + deadline_s
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._faults: dict[str, int | None] = {}

    def start(self, mount_point: str) -> None:
        self._processes[mount_point] = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROBE, mount_point],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def fault(self, mount_point: str) -> int | None:
        """An errno, ETIMEDOUT where nothing has answered in time, or None: each time the same."""
        if mount_point not in self._faults:
            self._faults[mount_point] = self._fault(self._processes[mount_point])
        return self._faults[mount_point]

    def _fault(self, process: subprocess.Popen[bytes]) -> int | None:
        try:
            code = process.wait(max(0.0, self._end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            return errno.ETIMEDOUT
        if code < 0:  # somebody has killed it
            return errno.ETIMEDOUT
        return code or None
