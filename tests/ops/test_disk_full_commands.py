"""On a full disk the daemon lives, its mounts live, and every command that makes room works."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import DaemonProcess, on_free_port, wait_until


@pytest.fixture
def small(idle_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """A daemon that was not started yet, its state root on a file system of 8 MiB."""
    idle_daemon.state.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", idle_daemon.state], check=True
    )
    try:
        yield idle_daemon
    finally:
        idle_daemon.clean_up()
        subprocess.run(["umount", "-l", idle_daemon.state], check=False, capture_output=True)


def fill(state: Path) -> Path:
    filler = state / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"\0" * 4096)
    return filler


def noticed(daemon: DaemonProcess) -> bool:
    """Whether a background fetch has met the full disk."""
    return any("No space" in record["message"] for record in daemon.log_records()[-5:])


def test_commands_on_a_full_disk(small: DaemonProcess, odd_repository: OddRepository) -> None:
    port = on_free_port(lambda port: small.start("--metrics", f"127.0.0.1:{port}"))
    remote = str(odd_repository.path)
    mount = small.add_repo("one", remote, "--refresh", "never")
    small.add_repo("two", remote, "--refresh", "never")
    for name in ("one", "two"):
        small.wait_for(name, "history")
        small.wait_for(name, "index")
    worker = small.status("one")["pid"]
    filler = fill(small.state)

    names = [repo["name"] for repo in small.json("list-repos")]
    assert names == ["one", "two"]
    assert httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).status_code == 200
    small.run("evict-cache", "--max-bytes", "0")
    fill(small.state)
    report = json.loads(small.run("doctor", "--offline", "--json", check=False).stdout)
    problems = [one["code"] for one in report["findings"] if one["severity"] == "problem"]
    assert problems == ["disk.full"]
    small.run("remove-repo", "--name", "two", "--force")
    assert [repo["name"] for repo in small.json("list-repos")] == ["one"]

    filler.unlink()
    small.run("set-refresh", "--name", "one", "0.2s")
    fill(small.state)
    wait_until(lambda: noticed(small), "a refresh that failed")
    assert small.status("one")["pid"] == worker
    assert "README.md" in os.listdir(mount)
    filler.unlink()
    wait_until(lambda: (small.status("one")["last_fetch"] or {}).get("ok"), "a refresh")
    assert small.status("one")["pid"] == worker
