"""Mounts that several files of tests use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.processes import IMPATIENCE_S, DaemonProcess, ServedRepository


@pytest.fixture
def kernel(
    daemon: DaemonProcess, proxy: DelayProxy, remote_repo: Callable[..., ServedRepository]
) -> Path:
    """The odd repository mounted as `odd` through the proxy, with its whole history."""
    url = proxy.url(remote_repo().url)
    mount = daemon.add_repo("odd", url, "--writes", "kernel", "--deadline", str(IMPATIENCE_S))
    daemon.wait_for("odd", "history")
    daemon.wait_for("odd", "index")
    return mount
