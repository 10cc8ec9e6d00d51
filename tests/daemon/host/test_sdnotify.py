"""Notifications to the service manager."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from artifactfs.daemon.host import sdnotify


@pytest.mark.parametrize("abstract", [False, True])
def test_fields_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    path = f"@artifactfs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path.replace("@", "\0", 1) if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert sdnotify.notify(READY=1, STATUS="2 of 2 mounted")
        assert receiver.recv(100) == b"READY=1\nSTATUS=2 of 2 mounted"


def test_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sdnotify.notify(READY=1)
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    assert not sdnotify.notify(READY=1)


def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert sdnotify.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert sdnotify.watchdog_interval_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sdnotify.watchdog_interval_s() is None, "it was meant for another process"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/artifact-fs.service\n", ("artifact-fs.service", [])),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/artifact-fs.service\n",
            ("artifact-fs.service", ["--user"]),
        ),
        ("0::/user.slice/user-0.slice/session-1.scope\n", None),
    ],
)
def test_which_service_we_are(
    tmp_path: Path, cgroup: str, unit: tuple[str, list[str]] | None
) -> None:
    file = tmp_path / "cgroup"
    file.write_text(cgroup)
    assert sdnotify._unit(file) == unit


@pytest.mark.parametrize(
    ("said", "restarts"),
    [
        ("4711 artifact-fs.service restart running", True),
        ("4711 artifact-fs.service stop running", False),
        ("4711 another.service restart running", False),
        ("No jobs running.", False),
    ],
)
def test_what_the_manager_is_about_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, restarts: bool
) -> None:
    """By what a `systemctl` says; where there is none, it stops us."""
    monkeypatch.setattr(sdnotify, "_unit", lambda _cgroup: ("artifact-fs.service", []))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not sdnotify.is_restarting()
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    assert not sdnotify.is_restarting()
    monkeypatch.setenv("INVOCATION_ID", "1")
    assert sdnotify.is_restarting() == restarts
