"""Commands without a daemon: register, look, change, remove."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifactfs.cli.main import run
from tests.e2e.processes import PROGRAMS, DaemonProcess, wait_until


def add(daemon: DaemonProcess, remote: Any, *options: str) -> None:
    daemon.run("add-repo", "--name", "hello", "--remote", str(remote.path), *options)


def test_register_look_and_remove(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    assert idle_daemon.json("list-repos") == []
    add(idle_daemon, local_remote)
    (repo,) = idle_daemon.json("status")
    assert repo["state"] == "not running"
    assert repo["ref"] == "main"
    assert (repo["ahead"], repo["behind"]) == (0, 0)
    assert repo["mount_point"] == str(idle_daemon.mounts / "hello")
    assert "hello" in idle_daemon.run("list-repos").stdout
    assert idle_daemon.json("remove-repo", "--name", "hello") == {"name": "hello", "removed": True}
    assert idle_daemon.json("list-repos") == []
    assert not (idle_daemon.state / "repos" / "hello").exists()
    assert not (idle_daemon.mounts / "hello").exists()


def test_umount_without_a_daemon_is_noted(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    idle_daemon.run("add-repo", "--name", "hello", "--remote", local_remote.path)
    idle_daemon.run("umount", idle_daemon.mounts / "hello")
    (repo,) = idle_daemon.json("list-repos")
    assert (repo["enabled"], repo["state"]) == (False, "unmounted")


def test_settings_are_kept(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    add(idle_daemon, local_remote, "--refresh", "never")
    assert idle_daemon.json("status", "--name", "hello")[0]["refresh_s"] is None
    idle_daemon.run("set-refresh", "--name", "hello", "30s")
    assert idle_daemon.json("status", "--name", "hello")[0]["refresh_s"] == 30.0
    idle_daemon.run("set-refresh", "--name", "hello", "--refresh", "never")
    assert idle_daemon.json("status", "--name", "hello")[0]["refresh_s"] is None


def test_fetch(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    add(idle_daemon, local_remote)
    local_remote.commit("new.txt", "new\n")
    answer = idle_daemon.json("fetch", "--name", "hello")
    assert answer["ok"]
    assert list(answer["updated"]) == ["refs/remotes/origin/main"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("set-refresh", "--name", "hello", "soon"),
        ("set-refresh", "--name", "hello"),
        ("add-repo", "--name", "x", "--remote", "/r", "--branch", "a", "--ref", "b"),
        ("add-repo", "--name", "x", "--remote", "/r", "--require-commit", "abc"),
        ("add-repo", "--name", "x", "--remote", "svn://host/x"),
        ("add-repo", "--name", "x"),
        ("nonsense",),
        ("status", "--nonsense"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setenv("ARTIFACT_FS_ROOT", str(tmp_path))
    assert run(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2


def test_a_close_command_is_suggested(idle_daemon: DaemonProcess) -> None:
    assert "status" in idle_daemon.run("statsu", check=False).stderr


def test_require_commit(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    first = local_remote.commit("a", "a")
    local_remote.commit("b", "b")
    remote = str(local_remote.path)
    refused = idle_daemon.run(
        *("add-repo", "--name", "hello", "--remote", remote),
        *("--branch", "main", "--require-commit", first),
        check=False,
    )
    assert refused.returncode != 0 and first in refused.stderr
    assert idle_daemon.json("list-repos") == []
    idle_daemon.run(
        *("add-repo", "--name", "hello", "--remote", remote),
        *("--ref", first, "--require-commit", first),
    )


def test_leftovers_of_a_crash_are_taken_over(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    """`add-repo` was killed in its middle: the name is free, and gc removes what it left.

    Also where a program of ours has that number by now, as after the restart of a container.
    """
    idle_daemon.start()
    for name, pid in (("hello", idle_daemon.pid), ("other", 999999999)):
        directory = idle_daemon.state / "repos" / name
        directory.mkdir(parents=True)
        (directory / "adding").write_text(f"{pid} 12345\n")
    add(idle_daemon, local_remote)
    assert idle_daemon.json("gc")["removed"] == ["repos/other"]
    assert (idle_daemon.state / "repos" / "hello" / "git").is_dir()


def test_nothing_is_writable_for_others(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    """Git runs programs that a gitdir's config names, whoever wrote it."""
    idle_daemon.state.mkdir(mode=0o755)
    subprocess.run(
        [PROGRAMS / "artifact-fs", "add-repo", "--name", "hello", "--remote", local_remote.path],
        env=idle_daemon.environment,
        check=True,
        umask=0,
    )
    found = [path for path in idle_daemon.state.rglob("*") if not path.is_symlink()]
    assert len(found) > 10
    assert [path for path in found if path.stat().st_mode & 0o022] == []


def test_a_state_root_with_a_long_path(local_remote: Any) -> None:
    """Longer than a Unix socket's address; and longer than what SQLite opens."""
    daemon = DaemonProcess()
    try:
        daemon.state = daemon.directory / "/".join(["d" * 100] * 4)
        daemon.start()
        mount = daemon.add_repo("hello", str(local_remote.path))
        assert (mount / "README.md").read_text() == "# Hello\n"
        daemon.stop()
        daemon.state = daemon.directory / "/".join(["d" * 100] * 6)
        refused = daemon.run("add-repo", "--name", "x", "--remote", local_remote.path, check=False)
        assert refused.returncode == 1
        assert "choose a state root whose path is well below" in refused.stderr
    finally:
        daemon.clean_up()
        shutil.rmtree(daemon.directory, ignore_errors=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_add_leaves_nothing(
    idle_daemon: DaemonProcess, proxy: Any, remote_repo: Any, number: signal.Signals
) -> None:
    url = proxy.url(remote_repo().url).replace("://", "://user:hunter2@", 1)
    proxy.stall()
    adding = subprocess.Popen(
        [PROGRAMS / "artifact-fs", "add-repo", "--name", "slow", "--remote", url],
        env=idle_daemon.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    credentials = idle_daemon.state / "repos" / "slow" / "credentials"
    wait_until(credentials.exists, "the credentials")
    assert credentials.stat().st_mode & 0o777 == 0o600
    adding.send_signal(number)
    _, said = adding.communicate(timeout=90)
    assert (adding.returncode, said.splitlines()[-1]) == (130, "error: interrupted"), said
    assert "Traceback" not in said and "hunter2" not in said
    assert not (idle_daemon.state / "repos" / "slow").exists()
    assert not (idle_daemon.mounts / "slow").exists()
    proxy.resume()


def test_a_read_only_state_root_is_told(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    add(idle_daemon, local_remote)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", idle_daemon.state], check=True)
    try:
        for arguments in (
            ("daemon",),
            ("gc",),
            ("add-repo", "--name", "x", "--remote", local_remote.path),
            ("mount", local_remote.path, idle_daemon.directory / "x"),
        ):
            done = idle_daemon.run(*arguments, check=False)
            assert done.returncode == 1
            first, *rest = done.stderr.splitlines()
            assert first.startswith("error: ") and len(rest) <= 1, done.stderr
    finally:
        subprocess.run(["umount", idle_daemon.state], check=True)
    assert not (idle_daemon.directory / "x").exists()


def test_gc_removes_temporary_files(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    add(idle_daemon, local_remote)
    directory = idle_daemon.state / "repos" / "hello"
    old, new = directory / ".credentials.00ff00ff", directory / ".credentials.11ff00ff"
    clone = directory / ".git.00ff00ff"
    clone.mkdir()
    for path in (old, new):
        path.touch()
    for path in (old, clone):
        os.utime(path, (0, 0))
    found = {f"repos/hello/{path.name}" for path in (old, clone)}
    assert set(idle_daemon.json("gc")["removed"]) == found
    assert new.exists() and not old.exists() and not clone.exists()


def test_data_that_is_not_registered_is_never_deleted(
    idle_daemon: DaemonProcess, local_remote: Any
) -> None:
    kept = idle_daemon.state / "repos" / "hello" / "precious"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    remote = str(local_remote.path)
    done = idle_daemon.run("add-repo", "--name", "hello", "--remote", remote, check=False)
    assert done.returncode == 1
    idle_daemon.run("gc")
    assert kept.read_text() == "x"


SECRET_PLACES = """
import sys
from artifactfs.daemon.control.remote_argument import read_remote
found = read_remote(sys.argv[1])
print(found.url, found.secret["username"], found.secret["password"])
assert found.secret["password"] not in repr(found)
"""


@pytest.mark.parametrize(
    ("given", "stdin", "token"),
    [
        ("https://me:hunter2@host/x.git", "", ""),
        ("-", "https://me:hunter2@host/x.git\n", ""),
        ("https://me@host/x.git", "", "hunter2"),
    ],
)
def test_where_credentials_come_from(
    given: str, stdin: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTIFACT_FS_TOKEN", token)
    done = subprocess.run(
        [sys.executable, "-c", SECRET_PLACES, given],
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["https://host/x.git", "me", "hunter2"]


FAST_PATH = """
import sys
from artifactfs.cli.main import run
assert run(["status", "--json"]) == 0
heavy = {"trio", "pyfuse3", "httpx", "pygit2", "sqlite_utils", "rich"}
print("HEAVY", *sorted(heavy & set(sys.modules)))
"""


def test_status_imports_nothing_heavy(daemon: DaemonProcess, local_remote: Any) -> None:
    add(daemon, local_remote)
    done = subprocess.run(
        [sys.executable, "-c", FAST_PATH],
        env=daemon.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    status, _, heavy = done.stdout.rpartition("HEAVY")
    assert json.loads(status)[0]["state"] == "mounted"
    assert heavy.split() == []


def test_every_command_explains_itself() -> None:
    from click.testing import CliRunner

    from artifactfs.cli.main import cli

    runner = CliRunner()
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        shown = runner.invoke(cli, [name, "--help"])
        assert shown.exit_code == 0, name
        assert "Examples:" in shown.output, name


def test_the_version_is_that_of_the_package(idle_daemon: DaemonProcess) -> None:
    import tomllib

    root = Path(__file__).resolve().parents[3]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert version in idle_daemon.run("--version").stdout


def test_without_a_daemon_the_mount_root_is_the_last_one(
    idle_daemon: DaemonProcess, local_remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(idle_daemon, local_remote)
    idle_daemon.start()
    idle_daemon.stop()
    monkeypatch.setattr(
        DaemonProcess,
        "environment",
        {k: v for k, v in idle_daemon.environment.items() if k != "ARTIFACT_FS_MOUNT_ROOT"},
    )
    (repo,) = idle_daemon.json("list-repos")
    assert repo["mount_point"] == str(idle_daemon.mounts / "hello")


def test_mount_says_why_its_daemon_did_not_start(
    idle_daemon: DaemonProcess, local_remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = idle_daemon.directory / "x"
    for _ in range(2):  # the log holds the first one's words, too
        monkeypatch.setenv("ARTIFACT_FS_DAEMON_CACHE_LIMIT", "lots")
        done = idle_daemon.run("mount", local_remote.path, where, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            "error: the daemon did not start: Invalid value for '--cache-limit': "
            "'lots' is not a size such as 500M or 2G",
            "hint: see artifact-fs daemon --help",
        ]
    assert not where.exists()


def test_the_shell_completes_names(
    idle_daemon: DaemonProcess, local_remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(idle_daemon, local_remote)
    monkeypatch.setenv("_ARTIFACT_FS_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "artifact-fs fetch --name he")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert idle_daemon.run().stdout == "plain,hello\n"
    monkeypatch.setenv("COMP_WORDS", "artifact-fs fetch --name x")
    assert idle_daemon.run().stdout.strip() == ""
