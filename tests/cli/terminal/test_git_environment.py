"""What the shell that adds a repository tells git holds for its daemon, and stays secret."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import LocalRemote
from tests.e2e.processes import DaemonProcess
from tests.git.http_backend import Backend, http_backend

SECRET = "geheim-9f31"
HEADER = f"X-Token: {SECRET}"


@pytest.fixture
def guarded(local_remote: LocalRemote) -> Iterator[Backend]:
    """A server that wants a header of every request."""
    with http_backend(local_remote.path.parent) as backend:
        backend.wants = {("x-token", SECRET)}
        yield backend


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    """One that was started before, in an environment without any of it."""
    process = DaemonProcess()
    try:
        (process.directory / "home").mkdir()
        process.start()
        yield process
    finally:
        process.extra_environment = {}
        process.clean_up()


def given(*pairs: tuple[str, str]) -> dict[str, str]:
    found = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return found


def git(daemon: DaemonProcess, mount: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(mount), *arguments],
        env=daemon.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def files_with(secret: str, directory: Path) -> dict[str, int]:
    """The files below `directory` that have `secret` in them, and their modes."""
    return {
        str(path.relative_to(directory)): path.stat().st_mode & 0o777
        for path in directory.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    }


def test_settings_of_the_command_alone(
    daemon: DaemonProcess, guarded: Backend, local_remote: LocalRemote
) -> None:
    daemon.extra_environment = given(
        (f"http.{guarded.url}/.extraHeader", HEADER),
        (f"url.{guarded.url}/.insteadOf", "work://"),
        (f"url.{local_remote.path.parent}/.pushInsteadOf", "work://"),
        ("user.email", "nobody@example.org"),
    )
    mount = daemon.add_repo("r", "work://remote.git", "--refresh", "never")
    daemon.extra_environment = {}
    assert (mount / "README.md").read_text() == "# Hello\n"
    new = local_remote.commit("new.txt", "x")
    daemon.run("fetch", "--name", "r")
    assert git(daemon, mount, "rev-parse", "origin/main") == new
    newer = local_remote.commit("newer.txt", "x")
    git(daemon, mount, "fetch", "-q")
    assert git(daemon, mount, "rev-parse", "origin/main") == newer
    sent = [name.lower() for name, _ in guarded.seen[-1].headers]
    assert sent.count("x-token") == 1
    assert git(daemon, mount, "remote", "get-url", "--push", "origin") == str(local_remote.path)
    git(daemon, mount, "push", "-q", "origin", "HEAD:refs/heads/mine")
    assert "nobody" not in git(daemon, mount, "config", "--list")
    assert daemon.status("r")["remote"] == "work://remote.git"

    daemon.stop()
    daemon.start()
    assert (mount / "src" / "main.c").read_text().startswith("int main")
    daemon.run("fetch", "--name", "r")
    assert set(files_with(SECRET, daemon.state).values()) == {0o600}
    assert set(files_with(SECRET, daemon.state)) == {
        "repos/r/git-environment",
        "repos/r/git-settings",
    }
    assert SECRET not in daemon.log.read_text()
    assert SECRET not in daemon.run("status", "--name", "r").stdout
    doctor = daemon.run("doctor", "--verbose", check=False).stdout
    assert "answers" in doctor and SECRET not in doctor


@pytest.mark.parametrize("variable", ["GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "HOME"])
def test_files_that_the_environment_names(
    daemon: DaemonProcess, guarded: Backend, variable: str
) -> None:
    home = daemon.directory / "home"
    name = ".gitconfig" if variable == "HOME" else "settings"
    (home / name).write_text(f"[http]\n\textraHeader = {HEADER}\n")
    named = str(home) if variable == "HOME" else str(home / name)
    daemon.extra_environment = {variable: named}
    if variable == "HOME":
        daemon.extra_environment["GIT_CONFIG_GLOBAL"] = str(home / name)
    mount = daemon.add_repo("r", f"{guarded.url}/remote.git", "--refresh", "never")
    daemon.extra_environment = {}
    daemon.stop()
    daemon.start()
    assert (mount / "README.md").read_text() == "# Hello\n"
    (home / name).write_text(f"[http]\n\textraHeader = {HEADER}-2\n")
    guarded.wants = {("x-token", f"{SECRET}-2")}
    daemon.run("remount", "--name", "r", "--restart")
    daemon.run("fetch", "--name", "r")


def test_new_settings_come_by_set_remote_and_bad_ones_do_not_stay(
    daemon: DaemonProcess, guarded: Backend
) -> None:
    key = f"http.{guarded.url}/.extraHeader"
    daemon.extra_environment = given((key, HEADER))
    url = f"{guarded.url}/remote.git"
    mount = daemon.add_repo("r", url, "--refresh", "never")
    daemon.extra_environment = given((key, ""), (key, "X-Token: wrong"))
    refused = daemon.run("set-remote", "--name", "r", "--remote", url, check=False)
    assert refused.returncode != 0
    daemon.run("fetch", "--name", "r")
    guarded.wants = {("x-token", "second")}
    daemon.extra_environment = given((key, ""), (key, "X-Token: second"))
    daemon.run("set-remote", "--name", "r", "--remote", url)
    daemon.extra_environment = {}
    daemon.run("fetch", "--name", "r")
    git(daemon, mount, "fetch")
    assert (mount / "src" / "main.c").read_text().startswith("int main")


@pytest.mark.parametrize(
    "environment",
    [
        given(("http.extraHeader", HEADER)),
        {"GIT_CONFIG_PARAMETERS": f"'http.extraHeader={HEADER}' 'user.name'='n'"},
    ],
    ids=["count", "parameters"],
)
def test_without_a_daemon(guarded: Backend, environment: dict[str, str]) -> None:
    daemon = DaemonProcess()
    try:
        daemon.extra_environment = environment
        url = f"{guarded.url}/remote.git"
        daemon.run("add-repo", "--name", "r", "--remote", url, "--hydrate", "none")
        daemon.run("fetch", "--name", "r")
        daemon.extra_environment = {}
        daemon.start()
        assert (daemon.mounts / "r" / "README.md").read_text() == "# Hello\n"
    finally:
        daemon.clean_up()


def test_configuration_that_git_refuses(daemon: DaemonProcess, guarded: Backend) -> None:
    daemon.extra_environment = {"GIT_CONFIG_COUNT": "three"}
    command = ("add-repo", "--name", "r", "--remote", f"{guarded.url}/remote.git")
    refused = daemon.run(*command, check=False)
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) <= 2
    assert "GIT_CONFIG_COUNT" in refused.stderr


def test_conditions_by_the_place_of_the_mount(daemon: DaemonProcess, guarded: Backend) -> None:
    home = daemon.directory / "home"
    (home / "deeper.config").write_text(f"[http]\n\textraHeader = {HEADER}\n")
    (home / "work.config").write_text(
        "[user]\n\temail = me@work.example\n"
        f'[includeIf "gitdir/i:{str(home).upper()}/WORK/"]\n\tpath = deeper.config\n'
    )
    (home / "config").write_text(
        f'[includeIf "gitdir:{home}/work/"]\n\tpath = {home}/work.config\n'
        f'[includeIf "gitdir:{home}/play/"]\n\tpath = {home}/absent.config\n'
        f'[includeIf "gitdir:./nowhere/"]\n\tpath = {home}/absent.config\n'
    )
    daemon.extra_environment = {"GIT_CONFIG_GLOBAL": str(home / "config")}
    url = f"{guarded.url}/remote.git"
    refused = daemon.run("add-repo", "--name", "p", "--remote", url, check=False)
    assert refused.returncode != 0
    options = ("--mount-root", str(home / "work"), "--refresh", "never")
    daemon.add_repo("r", url, *options)
    mount = home / "work" / "r"
    assert (mount / "README.md").read_text() == "# Hello\n"
    assert git(daemon, mount, "config", "user.email") == "me@work.example"
    git(daemon, mount, "config", "user.email", "mine@example.org")
    assert git(daemon, mount, "config", "user.email") == "mine@example.org"
    daemon.run("fetch", "--name", "r")


def test_the_url_that_git_is_told_in_the_mount(
    daemon: DaemonProcess, local_remote: LocalRemote, tmp_path: Path
) -> None:
    mount = daemon.add_repo("r", str(local_remote.path), "--refresh", "never")
    moved = tmp_path / "moved.git"
    local_remote.path.rename(moved)
    assert daemon.run("fetch", "--name", "r", check=False).returncode != 0
    git(daemon, mount, "remote", "set-url", "origin", str(moved))
    daemon.run("fetch", "--name", "r")
    assert daemon.status("r")["remote"] == str(moved)
    daemon.run("remount", "--name", "r", "--restart")
    assert (mount / "src" / "main.c").read_text().startswith("int main")


def test_conditions_by_the_remote(daemon: DaemonProcess, guarded: Backend) -> None:
    """`git clone` has them as soon as it knows the URL; later git finds them by the gitdir."""
    home = daemon.directory / "home"
    (home / "work.config").write_text(f"[http]\n\textraHeader = {HEADER}\n[user]\n\tname = W\n")
    (home / "config").write_text(
        f'[includeIf "hasconfig:remote.*.url:{guarded.url}/**"]\n\tpath = work.config\n'
        f'[includeIf "hasconfig:remote.*.url:{guarded.url}/*/x"]\n\tpath = {home}/absent.config\n'
    )
    daemon.extra_environment = {"GIT_CONFIG_GLOBAL": str(home / "config")}
    mount = daemon.add_repo("r", f"{guarded.url}/remote.git", "--refresh", "never")
    assert (mount / "README.md").read_text() == "# Hello\n"
    assert git(daemon, mount, "config", "user.name") == "W"
    git(daemon, mount, "fetch", "-q")
    daemon.run("fetch", "--name", "r")
    daemon.run("remount", "--name", "r", "--restart")
    git(daemon, mount, "fetch", "-q")
    assert {
        [name.lower() for name, _ in request.headers].count("x-token") for request in guarded.seen
    } == {1}


def test_the_shells_settings_are_in_place_of_the_daemons(guarded: Backend) -> None:
    """As where the first mount of a session has started the daemon."""
    daemon = DaemonProcess()
    try:
        daemon.extra_environment = given(("http.extraHeader", "X-Token: of another repository"))
        daemon.start()
        daemon.extra_environment = given(("http.extraHeader", HEADER))
        mount = daemon.add_repo("r", f"{guarded.url}/remote.git", "--refresh", "never")
        daemon.extra_environment = {}
        assert (mount / "README.md").read_text() == "# Hello\n"
        git(daemon, mount, "fetch", "-q")
    finally:
        daemon.clean_up()


@pytest.mark.parametrize("known", [True, False], ids=["a user", "a token"])
def test_a_name_in_the_url(daemon: DaemonProcess, local_remote: LocalRemote, known: bool) -> None:
    """It is a user where a helper knows the password, else a token."""
    home = daemon.directory / "home"
    helper = home / "helper"
    helper.write_text(
        "#!/bin/sh\ntest $1 = get || exit 0\nif grep -q ^username=alice; then\n"
        f"echo password={SECRET}; else echo username=bob; echo password=wrong; fi\n"
    )
    helper.chmod(0o755)
    with http_backend(local_remote.path.parent) as backend:
        backend.accept = {f"alice:{SECRET}" if known else "x:alice"}
        daemon.extra_environment = given(("credential.helper", str(helper) if known else ""))
        url = f"{backend.url}/remote.git".replace("://", "://alice@")
        mount = daemon.add_repo("r", url, "--refresh", "never")
        daemon.extra_environment = {}
        assert (mount / "README.md").read_text() == "# Hello\n"
        git(daemon, mount, "fetch", "-q")
        daemon.run("fetch", "--name", "r")
        daemon.run("remount", "--name", "r", "--restart")
        assert (mount / "src" / "main.c").read_text().startswith("int main")
        if known:
            backend.accept = {"x:given-now"}
            new = f"{backend.url}/remote.git".replace("://", "://x:given-now@")
            daemon.run("set-remote", "--name", "r", "--remote", new)
            git(daemon, mount, "fetch", "-q")
            daemon.run("fetch", "--name", "r")
        for path in files_with(SECRET, daemon.state):
            raise AssertionError(path)
