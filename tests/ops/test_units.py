"""The systemd units: sound, installable, and true to what the daemon does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(sys.executable).parent
UNITS = ROOT / "systemd"

has_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)

# What takes a service out of the host's mount namespace, so that nobody else sees its mounts.
MAKES_A_NAMESPACE = {
    "PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelTunables",
    "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc",
    "ProcSubset", "PrivateUsers", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths",
    "ExecPaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths",
    "RootDirectory", "RootImage", "MountFlags", "MountAPIVFS", "DynamicUser", "PrivateIPC",
    "PrivateNetwork", "CacheDirectory", "LogsDirectory",
}  # fmt: skip


def run_install(destdir: Path, *options: str) -> str:
    """Returns what the script said."""
    return subprocess.run(
        [ROOT / "scripts" / "install-service", "--destdir", destdir, "--bin", PROGRAMS, *options],
        check=True,
        capture_output=True,
        text=True,
    ).stderr


def install(destdir: Path, *options: str) -> Path:
    run_install(destdir, *options)
    return destdir / "etc" / "systemd" / "system"


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if match := re.match(r"([A-Z]\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@has_systemd
@pytest.mark.parametrize(
    ("options", "unit"),
    [
        ((), "artifact-fs.service"),
        (("--instance", "root"), "artifact-fs@.service"),
        (("--server",), "artifacts-server.service"),
    ],
)
def test_units_verify(tmp_path: Path, options: tuple[str, ...], unit: str) -> None:
    units = install(tmp_path, *options)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", units / unit], capture_output=True, text=True
    )
    assert verified.stderr == ""
    assert verified.returncode == 0


@has_systemd
def test_the_user_unit_verifies(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path)}
    environment.pop("XDG_CONFIG_HOME", None)
    subprocess.run(
        [ROOT / "scripts" / "install-service", "--user", "--destdir", tmp_path, "--bin", PROGRAMS],
        check=True,
        capture_output=True,
        env=environment,
    )
    (unit,) = tmp_path.rglob("artifact-fs.service")
    verified = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert verified.stderr == ""


@has_systemd
def test_exposure_does_not_grow(tmp_path: Path) -> None:
    """`systemd-analyze security`: 10 is wide open. A mount service must keep CAP_SYS_ADMIN."""
    most = {"artifact-fs.service": 5.5, "artifacts-server.service": 1.5}
    units = install(tmp_path, "--server")
    for unit, limit in most.items():
        said = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--no-pager", units / unit],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        exposure = re.search(r"exposure level for \S+: ([\d.]+)", said)
        assert exposure is not None
        assert float(exposure[1]) <= limit


@pytest.mark.parametrize(
    "unit", ["artifact-fs.service", "artifact-fs@.service", "user/artifact-fs.service"]
)
def test_mounts_are_seen_by_everybody(unit: str) -> None:
    assert not MAKES_A_NAMESPACE & set(settings(UNITS / unit))


@pytest.mark.parametrize("unit", ["artifact-fs@.service", "user/artifact-fs.service"])
def test_fusermount3_keeps_its_privileges(unit: str) -> None:
    found = settings(UNITS / unit)
    assert found.get("NoNewPrivileges", ["no"]) == ["no"]
    implying = {
        "SystemCallFilter",
        "RestrictAddressFamilies",
        "LockPersonality",
        "RestrictRealtime",
    }
    assert not implying & set(found)


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    units = install(tmp_path)
    before = (units / "artifact-fs.service").read_text()
    assert f"unchanged: {units / 'artifact-fs.service'}" in run_install(tmp_path)
    assert [path.name for path in units.iterdir()] == ["artifact-fs.service"]
    assert (units / "artifact-fs.service").read_text() == before
    assert f"ExecStart={PROGRAMS}/artifact-fs daemon" in before


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "install-service", "--frobnicate"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--frobnicate" in done.stderr


# -- the same ExecStart, with us in systemd's place -------------------------------------------


class NotifySocket:
    """Receives what the service tells its manager (sd_notify(3))."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.seen: list[dict[str, str]] = []

    def wait_for(self, field: str, deadline_s: float = 90.0) -> str:
        end = time.monotonic() + deadline_s
        while True:
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            message = self._socket.recv(4096).decode()
            fields = dict(line.split("=", 1) for line in message.splitlines())
            self.seen.append(fields)
            if field in fields:
                return fields[field]

    def close(self) -> None:
        self._socket.close()


@contextmanager
def started(
    tmp_path: Path, watchdog_s: float
) -> Iterator[tuple[subprocess.Popen[bytes], NotifySocket]]:
    units = install(tmp_path / "root")
    (command,) = settings(units / "artifact-fs.service")["ExecStart"]
    manager = NotifySocket(tmp_path / "notify")
    environment = os.environ | {
        "NOTIFY_SOCKET": str(manager.path),
        "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
        "ARTIFACT_FS_ROOT": str(tmp_path / "state"),
        "ARTIFACT_FS_MOUNT_ROOT": str(tmp_path / "mnt"),
    }
    # Its own group, so that nothing can outlive the test.
    process = subprocess.Popen(
        command.split(), env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process, manager
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        manager.close()


def test_the_daemon_reports_to_its_manager(tmp_path: Path) -> None:
    with started(tmp_path, watchdog_s=0.4) as (process, manager):
        assert manager.wait_for("READY") == "1"
        for _ in range(3):
            assert manager.wait_for("WATCHDOG") == "1"
        process.terminate()
        assert manager.wait_for("STOPPING") == "1"
        assert process.wait(60) == 0


def test_a_daemon_that_hangs_feeds_no_watchdog(tmp_path: Path) -> None:
    with started(tmp_path, watchdog_s=0.4) as (process, manager):
        manager.wait_for("READY")
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            while True:  # what was sent before it stopped may still be there
                manager.wait_for("WATCHDOG", deadline_s=2.0)
        process.send_signal(signal.SIGCONT)
        assert manager.wait_for("WATCHDOG") == "1"
