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
