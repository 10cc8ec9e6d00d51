"""Mistakes get one line that says what to do, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import DaemonProcess, ServedRepository, refusing_port


def assert_refused(daemon: DaemonProcess, *arguments: str | Path) -> str:
    """Run a command that must fail; return its message."""
    done = daemon.run(*arguments, check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def names(daemon: DaemonProcess) -> set[str]:
    found = daemon.json("list-repos")
    repos = found["repos"] if isinstance(found, dict) else found
    return {repo["name"] for repo in repos}


def assert_nothing_left(daemon: DaemonProcess, name: str) -> None:
    assert name not in names(daemon)
    assert not (daemon.state / "repos" / name).exists()
    assert not (daemon.mounts / name).exists()


@pytest.mark.parametrize("running", [True, False], ids=["daemon", "no daemon"])
@pytest.mark.parametrize("kind", ["host", "port", "path", "branch", "token", "no repository"])
def test_remote_that_cannot_be_cloned(
    idle_daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    kind: str,
    running: bool,
) -> None:
    if running:
        idle_daemon.start()
    served = remote_repo()
    with refusing_port() as port:
        remote = {
            "host": "http://no-such-host.invalid/git/x/y.git",
            "port": f"http://127.0.0.1:{port}/git/x/y.git",
            "path": "/no/such/path.git",
            "branch": served.url,
            "token": served.remote.replace("://", "://x:art_v1_" + "0" * 40 + "@"),
            "no repository": served.url.replace(served.name, "nothing-here"),
        }[kind]
        add = ["add-repo", "--name", "bad", "--remote", remote]
        add += ["--branch", "no-such-branch"] if kind == "branch" else []
        message = assert_refused(idle_daemon, *add)
    assert "\nhint: " in message
    assert served.token.partition("?")[0] not in message
    assert_nothing_left(idle_daemon, "bad")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "-x", "x" * 200, "a b"])
def test_names_that_cannot_be(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], name: str
) -> None:
    done = daemon.run("add-repo", f"--name={name}", "--remote", remote_repo().url, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(daemon.mounts.iterdir())


def test_name_taken(mounted: Path, daemon: DaemonProcess, odd_remote: str) -> None:
    message = assert_refused(daemon, "add-repo", "--name", "odd", "--remote", odd_remote)
    assert "odd" in message
    assert (mounted / "README.md").is_file()


@pytest.fixture
def odd_remote(remote_repo: Callable[..., ServedRepository]) -> str:
    return remote_repo().url


def test_mount_point_not_empty(daemon: DaemonProcess, odd_remote: str) -> None:
    (daemon.mounts / "full").mkdir()
    (daemon.mounts / "full" / "mine").write_text("keep")
    assert_refused(daemon, "add-repo", "--name", "full", "--remote", odd_remote)
    assert (daemon.mounts / "full" / "mine").read_text() == "keep"
    assert "full" not in names(daemon)


def test_mount_point_in_use(mounted: Path, daemon: DaemonProcess, odd_remote: str) -> None:
    assert_refused(
        daemon, "add-repo", "--name", "odd2", "--remote", odd_remote, "--mount-root", mounted
    )
    assert "odd2" not in names(daemon)
    assert (mounted / "README.md").is_file()


@pytest.mark.parametrize("command", ["status", "fetch", "unmount", "remount", "remove-repo"])
def test_unknown_repository(daemon: DaemonProcess, command: str) -> None:
    assert "nobody" in assert_refused(daemon, command, "--name", "nobody")


def test_commands_without_a_daemon(idle_daemon: DaemonProcess) -> None:
    assert names(idle_daemon) == set()
    assert_refused(idle_daemon, "fetch", "--name", "nobody")


def test_two_daemons_for_one_state_root(daemon: DaemonProcess) -> None:
    assert_refused(daemon, "daemon", "--root", daemon.mounts)
