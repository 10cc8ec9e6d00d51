"""What people type every day, and what they try: names, aliases, the daemon's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from artifactfs.cli.operation import running
from artifactfs.daemon.control.remote_argument import read_remote, remote_of_environment
from tests.e2e.mount_table import mounted_at
from tests.e2e.processes import PROGRAMS, DaemonProcess, wait_until


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS / "artifact-fs", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
    )


@pytest.fixture
def hello(daemon: DaemonProcess, local_remote: Any) -> Path:
    return daemon.add_repo("hello", str(local_remote.path), "--refresh", "never")


def test_names_are_arguments_or_flags(hello: Path, daemon: DaemonProcess) -> None:
    assert daemon.run("status", "hello", "--no-porcelain").stdout.startswith("hello: mounted")
    assert json.loads(daemon.run("status", "--json", "hello").stdout)[0]["name"] == "hello"
    assert daemon.run("fetch", "hello").returncode == 0
    assert daemon.run("diff-overlay", "hello").stdout == ""
    both = daemon.run("status", "hello", "--name", "other", check=False)
    assert both.returncode == 2 and "two names: hello and --name other" in both.stderr
    none = daemon.run("unmount", check=False)
    assert none.returncode == 2 and "Missing the NAME" in none.stderr
    daemon.run("unmount", "hello")
    assert not mounted_at(hello)
    daemon.run("remount", "hello")
    assert mounted_at(hello)


def test_words_that_people_try(hello: Path, daemon: DaemonProcess) -> None:
    assert daemon.run("ls").stdout == daemon.run("list").stdout == daemon.run("list-repos").stdout
    assert program("-V").stdout == program("version").stdout == program("--version").stdout
    assert program("help").stdout == program("--help").stdout == program().stdout
    assert program("help", "mount").stdout == program("mount", "--help").stdout
    assert program("redirect").returncode == 0 and "Usage:" in program("redirect").stdout
    wrong = program("statsu")
    assert wrong.returncode == 2 and "did you mean status?" in wrong.stderr


def test_a_removal_is_tried_first(hello: Path, daemon: DaemonProcess) -> None:
    assert daemon.run("rm", "hello", "--dry-run").stdout == "hello: would be removed\n"
    (hello / "mine").write_text("mine")
    refused = daemon.run("rm", "hello", "--dry-run", check=False)
    assert refused.returncode != 0 and "local change" in refused.stderr
    assert (hello / "mine").read_text() == "mine"
    daemon.run("rm", "hello", "--force")
    assert daemon.run("ls", "--json").stdout.strip() == "[]"
    assert "no repositories; add one" in daemon.run("status").stderr


def test_the_daemon_restarts_reloads_and_stops(tmp_path: Path, local_remote: Any) -> None:
    daemon = DaemonProcess()
    try:
        daemon.start()
        mount = daemon.add_repo("hello", str(local_remote.path), "--refresh", "never")
        before = (mount / "README.md").read_text()
        assert "runs anew" in daemon.run("daemon", "restart").stdout
        wait_until(lambda: mounted_at(mount), "the mount after the restart")
        assert (mount / "README.md").read_text() == before

        daemon.run("wait", "hello")  # for the process that goes on with it
        settings = tmp_path / "config.toml"
        settings.write_text("[daemon]\nlog-level = 'debug'\ncache-limit = '1G'\n")
        given = daemon.environment | {"ARTIFACT_FS_CONFIG": str(settings)}
        reloaded = json.loads(program("daemon", "reload", "--json", **given).stdout)
        assert reloaded["log_level"] == "debug" and reloaded["cache_limit"] == 1 << 30
        assert reloaded["repos"] == ["hello"]

        assert "has ended" in daemon.run("daemon", "stop").stdout
        assert not mounted_at(mount)
        again = daemon.run("daemon", "stop", check=False)
        assert again.returncode != 0 and "no daemon runs" in again.stderr
    finally:
        daemon.clean_up()


MANY = 8


def test_many_mounts_at_once(tmp_path: Path, local_remote: Any) -> None:
    """All work, though each would like to be called `tree`."""
    root = tmp_path / "state"
    places = [tmp_path / str(number) / "tree" for number in range(MANY)]
    for place in places:
        place.parent.mkdir()
    command = ("--state-root", str(root), "mount", "-q", str(local_remote.path))
    try:
        with ThreadPoolExecutor(MANY) as pool:
            done = list(pool.map(lambda place: program(*command, str(place)), places))
        assert {(each.returncode, each.stdout, each.stderr) for each in done} == {(0, "", "")}
        assert all((place / "README.md").read_text() == "# Hello\n" for place in places)
        listed = json.loads(program("--state-root", str(root), "ls", "--json").stdout)
        assert len({each["name"] for each in listed}) == MANY
        taken = program(*command, str(tmp_path / "more"), "--name", "tree")
        assert taken.returncode != 0 and "'tree' is registered already" in taken.stderr
    finally:
        program("--state-root", str(root), "daemon", "stop")
    assert not any(mounted_at(place) for place in places)


def test_the_settings_file(tmp_path: Path) -> None:
    settings = tmp_path / "etc" / "config.toml"
    given = {"ARTIFACT_FS_CONFIG": str(settings)}
    settings.parent.mkdir()
    settings.write_text("# Ours.\n[add_repo]\nrefresh = '5m'  # often\n")
    assert program("config", "set", "daemon.cache-limit", "5G", **given).returncode == 0
    assert program("config", "set", "add-repo.refresh", "30s", **given).returncode == 0
    assert program("config", "set", "add-repo.hydrate-first", "*.c", "*.h", **given).returncode == 0
    assert program("config", "get", "daemon.cache_limit", **given).stdout == "5G\n"
    assert program("config", "list", **given).stdout.splitlines() == [
        "add-repo.refresh = 30s",
        'add-repo.hydrate-first = ["*.c", "*.h"]',
        "daemon.cache-limit = 5G",
    ]
    assert "# Ours." in settings.read_text() and "# often" in settings.read_text()
    before = settings.read_text()
    wrong = program("config", "set", "daemon.cach-limit", "5G", **given)
    assert wrong.returncode != 0 and "did you mean 'cache-limit'?" in wrong.stderr
    assert settings.read_text() == before
    assert program("config", "get", "daemon.log-level", **given).returncode == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("1m30s", 90.0), ("5m0s", 300.0), ("1h0m0s", 3600.0), ("90", 90.0)]
)
def test_durations(hello: Path, daemon: DaemonProcess, text: str, seconds: float) -> None:
    daemon.run("set-refresh", "--name", "hello", text)
    assert daemon.status("hello")["refresh_s"] == seconds


def test_set_refresh_by_name(hello: Path, daemon: DaemonProcess) -> None:
    for words, seconds in (
        (("hello", "30s"), 30),
        (("hello", "--interval", "40s"), 40),
        (("hello", "never"), None),
        (("--name", "hello", "50s"), 50),
    ):
        assert daemon.json("set-refresh", *words)["refresh_s"] == seconds
    for words in (("hello",), ("hello", "30s", "40s"), ("hello", "soon"), ("hello", "--", "-5s")):
        refused = daemon.run("set-refresh", *words, check=False)
        assert refused.returncode == 2 and refused.stderr.startswith("error: "), words


def test_a_ref_that_is_not_there_names_branches_and_tags(
    daemon: DaemonProcess, local_remote: Any
) -> None:
    subprocess.run(["git", "-C", local_remote.path, "tag", "v1.0"], check=True)
    options = ("--name", "x", "--remote", local_remote.path, "--ref", "v1.1")
    refused = daemon.run("add-repo", *options, check=False)
    assert "hint: it has the branch main and the tag v1.0\n" in refused.stderr


def test_what_is_no_duration(hello: Path, daemon: DaemonProcess) -> None:
    for text in ("1m30", "h", "0s", "-5m", "5 parsecs"):
        refused = daemon.run("set-refresh", "--name", "hello", "--refresh", text, check=False)
        assert refused.returncode == 2 and "is not a duration" in refused.stderr, text


def test_the_two_ways_to_mount_do_not_get_in_each_others_way(
    idle_daemon: DaemonProcess, local_remote: Any
) -> None:
    """`mount` starts a daemon of its own; a `daemon` that comes later goes on with it."""
    daemon, remote = idle_daemon, str(local_remote.path)
    root = daemon.directory / "root"
    daemon.run("mount", remote, daemon.directory / "one")
    inside = subprocess.Popen(["sleep", "60"], cwd=daemon.directory / "one")
    started = daemon.run("daemon", "--background", "--root", root)
    assert "1 of 1 repositories are mounted" in started.stdout
    daemon.run("add-repo", "--name", "two", "--remote", remote)
    assert (root / "two" / "README.md").exists()
    assert os.listdir(f"/proc/{inside.pid}/cwd"), "the tree that it is in is still there"
    inside.kill()
    inside.wait()
    twice = daemon.run("daemon", "--background", check=False)
    assert twice.returncode == 1 and "runs for" in twice.stderr
    daemon.run("daemon", "stop")


def test_a_daemon_in_the_background(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    daemon, remote = idle_daemon, local_remote.path
    daemon.run("add-repo", "--name", "hello", "--remote", str(remote))
    daemon.run("daemon", "--background", "--log-level", "debug")
    assert (daemon.mounts / "hello" / "README.md").exists(), "it can be read when that returns"
    assert '"level": "debug"' in (daemon.state / "daemon.log").read_text()
    daemon.run("daemon", "stop")
    daemon.run("add-repo", "--name", "absent", "--remote", f"{remote}.absent", "--async")
    failed = daemon.run("daemon", "--background", check=False)
    assert failed.returncode == 1 and "error: absent is not mounted: " in failed.stderr
    assert "1 of 2 repositories are mounted" in failed.stdout
    daemon.run("daemon", "stop")


def test_a_daemon_in_the_foreground_takes_over(
    idle_daemon: DaemonProcess, local_remote: Any
) -> None:
    daemon = idle_daemon
    daemon.run("mount", str(local_remote.path), daemon.directory / "one")
    command = [PROGRAMS / "artifact-fs", "daemon"]
    foreground = subprocess.Popen(command, env=daemon.environment, stderr=subprocess.PIPE)
    assert foreground.stderr is not None
    assert b"going on with the daemon" in foreground.stderr.readline()
    assert (daemon.directory / "one" / "README.md").exists()
    foreground.terminate()
    assert foreground.wait(60) == 0
    assert not os.listdir(daemon.directory / "one"), "it was unmounted"


GUIDE = """\
artifact-fs add-repo \\
  --name starter-repo \\
  --remote "$ARTIFACTS_AUTH_REMOTE" \\
  --branch main \\
  --mount-root "$ROOT"

artifact-fs daemon --root "$ROOT" &

ls $ROOT/starter-repo/
cat $ROOT/starter-repo/README.md
git -C $ROOT/starter-repo log --oneline -5
until grep -q "going on with the daemon" "$SAID"; do sleep 0.05; done
kill $!; wait $!
"""


def test_the_documented_guide_as_a_whole(
    idle_daemon: DaemonProcess, local_remote: Any, tmp_path: Path
) -> None:
    """Nothing in it waits for the daemon: the tree is there before."""
    daemon = idle_daemon
    environment = {
        **daemon.environment,
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "ROOT": str(tmp_path / "root"),
        "SAID": str(tmp_path / "said"),
        "ARTIFACTS_AUTH_REMOTE": f"file://{local_remote.path}",
    }
    script = 'exec 2>"$SAID"\n' + GUIDE
    done = subprocess.run(
        ["bash", "-s"],
        input=script,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
    )
    said = (tmp_path / "said").read_text()
    assert "README.md" in done.stdout.splitlines(), said
    assert len(done.stdout.splitlines()[-1].split()[0]) == 7, "a line of the log"
    assert "going on with the daemon" in said and '"message": "stopped"' in said
    assert done.returncode == 0
    assert not os.listdir(tmp_path / "root" / "starter-repo"), "it was unmounted with the daemon"


def test_a_daemon_with_options_of_its_own_takes_the_place_of_the_one_of_add_repo(
    idle_daemon: DaemonProcess, local_remote: Any, tmp_path: Path
) -> None:
    daemon, root = idle_daemon, tmp_path / "root"
    daemon.run("add-repo", "--name", "one", "--remote", local_remote.path, "--mount-root", root)
    before = daemon.json("status")[0]["pid"]
    daemon.run("daemon", "--background", "--root", root, "--hydration-concurrency", "2")
    assert (root / "one" / "README.md").exists()
    assert daemon.json("status")[0]["pid"] != before
    daemon.run("daemon", "stop")


def test_who_stays_with_a_daemon_ends_it_also_by_sigkill(
    idle_daemon: DaemonProcess, local_remote: Any, tmp_path: Path
) -> None:
    daemon, root = idle_daemon, tmp_path / "root"
    daemon.run("add-repo", "--name", "one", "--remote", local_remote.path, "--mount-root", root)
    command = [PROGRAMS / "artifact-fs", "daemon", "--root", str(root)]
    foreground = subprocess.Popen(command, env=daemon.environment, stderr=subprocess.PIPE)
    assert foreground.stderr is not None
    assert b"going on with the daemon" in foreground.stderr.readline()
    daemon.run("daemon", "restart")
    wait_until((root / "one" / "README.md").exists, "it is mounted again")
    assert foreground.poll() is None, "it stays with it also while it starts anew"
    foreground.kill()
    foreground.wait(60)
    wait_until(lambda: not os.listdir(root / "one"), "it was unmounted")


def test_where_the_mount_root_is_not_known_it_is_only_registered(
    idle_daemon: DaemonProcess, local_remote: Any, tmp_path: Path
) -> None:
    daemon, remote = idle_daemon, local_remote.path
    one = daemon.run("add-repo", "--name", "one", "--remote", remote)
    two = daemon.run("add-repo", "--name", "two", "--remote", remote, "--mount-root", tmp_path)
    assert ": registered and will be at " in one.stdout and ": registered" in two.stdout
    daemon.run("daemon", "--background", "--root", tmp_path / "root")
    assert (tmp_path / "root" / "one" / "README.md").exists()
    assert (tmp_path / "two" / "README.md").exists()
    daemon.run("daemon", "stop")


def test_remote_and_token_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def password(remote: str) -> object:
        return read_remote(remote).secret["password"]

    monkeypatch.setenv("ARTIFACTS_TOKEN", "secret")
    assert password("https://host/r.git") == "secret"
    monkeypatch.setenv("ARTIFACTS_GIT_REMOTE", "https://host/git/r.git")
    assert remote_of_environment() == "https://host/git/r.git"
    assert password("https://host/other.git") == "secret"
    assert password("https://elsewhere.example/r.git") is None, "it is no business of others"
    monkeypatch.setenv("ARTIFACT_FS_TOKEN", "given")
    assert password("https://elsewhere.example/r.git") == "given"


def test_a_report_that_can_be_sent(
    daemon: DaemonProcess, local_remote: Any, tmp_path: Path
) -> None:
    daemon.add_repo("hello", str(local_remote.path))
    credentials = daemon.state / "repos" / "hello" / "credentials"
    credentials.write_text("https://x:hunter2hunter2@host.example\n")
    target = tmp_path / "report.zip"
    daemon.extra_environment["ARTIFACTS_TOKEN"] = "hunter2hunter2"
    (daemon.state / "daemon.log").write_text("a line with hunter2hunter2 in it\n")
    try:
        daemon.run("doctor", "--offline", "--bundle", target, check=False)
    finally:
        del daemon.extra_environment["ARTIFACTS_TOKEN"]
    assert target.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(target) as bundle:
        texts = {name: bundle.read(name).decode() for name in bundle.namelist()}
    assert {"doctor.json", "status.json", "versions.txt", "daemon.log"} <= set(texts)
    assert not any("hunter2" in text for text in texts.values())
    assert json.loads(texts["status.json"])[0]["name"] == "hello"


def test_the_last_words_of_the_daemon_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "LOOK_EVERY_S", 60)
    log = tmp_path / "daemon.log"
    log.write_text("before\n")
    with running._shown(log), log.open("a") as file:
        file.write("stopped\n")
    assert capsys.readouterr().err == "stopped\n"
    with running._shown(tmp_path / "absent"):
        pass
    assert capsys.readouterr().err == ""
