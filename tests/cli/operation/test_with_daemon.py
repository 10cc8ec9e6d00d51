"""Commands that ask the daemon, over real mounts of a local remote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from artifactfs.daemon.control.client import ControlClient
from artifactfs.errors import StateError
from artifactfs.paths import StateLayout
from tests.e2e.mount_table import mounted_at
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import PROGRAMS, DaemonProcess, wait_until


@pytest.fixture
def hello(daemon: DaemonProcess, local_remote: Any) -> Path:
    return daemon.add_repo("hello", str(local_remote.path), "--refresh", "never")


def git(mount: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(mount), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_status_says_how_far_behind(hello: Path, daemon: DaemonProcess, local_remote: Any) -> None:
    daemon.wait_for("hello", "history")
    assert (daemon.status("hello")["ahead"], daemon.status("hello")["behind"]) == (0, 0)
    local_remote.commit("one.txt", "1")
    local_remote.commit("two.txt", "2")
    daemon.run("fetch", "--name", "hello")
    git(hello, "commit", "-q", "--allow-empty", "-m", "Mine")
    status = daemon.status("hello")
    assert (status["ahead"], status["behind"]) == (1, 2)
    assert status["last_fetch"]["ok"]
    assert not (hello / "one.txt").exists(), "a fetch never touches the working tree"
    assert "1 ahead, 2 behind origin/main" in daemon.run("status", "--no-porcelain").stdout


def test_background_refresh(hello: Path, daemon: DaemonProcess, local_remote: Any) -> None:
    daemon.wait_for("hello", "history")
    new = local_remote.commit("one.txt", "1")
    daemon.run("set-refresh", "--name", "hello", "0.2s")
    wait_until(lambda: git(hello, "rev-parse", "origin/main") == new, "the refresh")


def test_follow_moves_forward_only_without_changes(
    daemon: DaemonProcess, local_remote: Any
) -> None:
    options = ("--follow", "main", "--refresh", "never")
    mount = daemon.add_repo("live", str(local_remote.path), *options)
    daemon.wait_for("live", "history")
    new = local_remote.commit("README.md", "# Second\n")
    assert daemon.json("fetch", "--name", "live")["followed"] == new
    assert (mount / "README.md").read_text() == "# Second\n"
    assert git(mount, "rev-parse", "HEAD") == new
    assert git(mount, "status", "--porcelain") == ""
    (mount / "src" / "main.c").write_text("mine\n")
    local_remote.commit("README.md", "# Third\n")
    assert "followed" not in daemon.json("fetch", "--name", "live")
    assert (mount / "README.md").read_text() == "# Second\n"
    git(mount, "checkout", "-q", "src/main.c")
    assert "followed" in daemon.json("fetch", "--name", "live")
    assert (mount / "README.md").read_text() == "# Third\n"


@pytest.mark.parametrize("kind", ["blobless", "full"])
def test_a_prepared_gitdir(
    daemon: DaemonProcess, local_remote: Any, tmp_path: Path, kind: str
) -> None:
    gitdir = tmp_path / "prepared.git"
    partial = ["--filter=blob:none"] if kind == "blobless" else []
    remote = f"file://{local_remote.path}"
    subprocess.run(["git", "clone", "-q", "--bare", *partial, remote, gitdir], check=True)
    head = git(gitdir, "rev-parse", "HEAD")
    options = ("--prepared-gitdir", "--git-dir", gitdir, "--require-commit", head)
    daemon.run("add-repo", "--name", "ready", *options)
    mount = daemon.mounts / "ready"
    assert (mount / "README.md").read_text() == "# Hello\n"
    assert git(mount, "status", "--porcelain") == ""
    (mount / "README.md").write_text("# Mine\n")
    git(mount, "commit", "-q", "-a", "-m", "Mine")
    refused = daemon.run("add-repo", "--name", "twice", "--git-dir", gitdir, check=False)
    assert refused.returncode == 1 and str(mount) in refused.stderr
    daemon.run("remove-repo", "--name", "ready")
    assert git(gitdir, "log", "-1", "--format=%s") == "Mine", "it is not ours to delete"


def test_unmount_is_kept_over_a_restart(hello: Path, daemon: DaemonProcess) -> None:
    daemon.run("unmount", "--name", "hello")
    assert not mounted_at(hello)
    daemon.stop()
    daemon.start()
    assert not mounted_at(hello)
    daemon.run("remount", "--name", "hello")
    assert (hello / "README.md").read_text() == "# Hello\n"


def test_remounts_at_the_same_time(hello: Path, daemon: DaemonProcess) -> None:
    daemon.run("unmount", "--name", "hello")
    command = [PROGRAMS / "artifact-fs", "remount", "--name", "hello"]
    started = [subprocess.Popen(command, env=daemon.environment) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0] * 4
    assert len([line for line in mount_lines() if f" {hello} " in line]) == 1
    daemon.run("unmount", "--name", "hello")
    assert not mounted_at(hello)


def mount_lines() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def test_unmount_while_in_use(hello: Path, daemon: DaemonProcess) -> None:
    with open(hello / "README.md"):
        done = daemon.run("unmount", "--name", "hello", check=False)
        assert done.returncode == 1
        assert "busy" in done.stderr and "--force" in done.stderr
        assert (hello / "README.md").exists()
    daemon.run("unmount", "--name", "hello")


def test_another_mount_root_at_the_next_start(
    idle_daemon: DaemonProcess, local_remote: Any
) -> None:
    daemon = idle_daemon
    daemon.start()
    daemon.add_repo("hello", str(local_remote.path))
    daemon.stop()
    daemon.mounts = daemon.directory / "elsewhere"
    daemon.start()
    moved = daemon.mounts / "hello"
    assert (moved / "README.md").exists()
    assert git(moved, "status", "--porcelain") == ""
    assert git(moved, "rev-parse", "--show-toplevel") == str(moved)


@pytest.mark.parametrize("loss", ["untracked file", "edit", "commit", "stash", "branch"])
def test_remove_repo_refuses_to_lose_work(hello: Path, daemon: DaemonProcess, loss: str) -> None:
    if loss == "untracked file":
        (hello / "notes.txt").write_text("x")
    else:
        (hello / "README.md").write_text("# Changed\n")
    if loss in ("commit", "branch"):
        git(hello, "switch", "-q", "-c", "topic")
        git(hello, "commit", "-q", "-a", "-m", "Mine")
    if loss == "branch":
        git(hello, "switch", "-q", "main")
    if loss == "stash":
        git(hello, "stash", "-q")
    done = daemon.run("remove-repo", "--name", "hello", check=False)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert (hello / "README.md").exists()
    daemon.run("unmount", "--name", "hello")
    assert daemon.run("remove-repo", "--name", "hello", check=False).returncode == 1
    daemon.run("remove-repo", "--name", "hello", "--force")
    assert daemon.json("list-repos") == []


@pytest.mark.parametrize("back", [(), ("main",)], ids=["HEAD there", "HEAD elsewhere"])
@pytest.mark.parametrize("options", [(), ("-a", "-m", "Mine")], ids=["plain", "annotated"])
def test_a_tag_made_here_is_no_copy(
    hello: Path, daemon: DaemonProcess, options: tuple[str, ...], back: tuple[str, ...]
) -> None:
    git(hello, "switch", "-q", "--detach")
    git(hello, "commit", "-q", "--allow-empty", "-m", "Mine")
    git(hello, "tag", *options, "mine")
    for branch in back:
        git(hello, "switch", "-q", branch)
    done = daemon.run("remove-repo", "--name", "hello", check=False)
    assert done.returncode == 1
    assert "1 unpushed commit" in done.stderr
    git(hello, "push", "-q", "origin", "mine~0:refs/heads/mine")
    daemon.run("remove-repo", "--name", "hello")


def test_who_removes_a_mounted_repository_has_asked_git(hello: Path, daemon: DaemonProcess) -> None:
    """The daemon does not look into the mount, and takes no silence for an answer."""
    with ControlClient(StateLayout(daemon.state)) as client:
        with pytest.raises(StateError, match="git status"):
            client.request("remove", name="hello")
        with pytest.raises(StateError, match="1 local change"):
            client.request("remove", name="hello", changes=["notes.txt"])
    assert (hello / "README.md").exists()


def test_remove_repo_after_a_push(hello: Path, daemon: DaemonProcess) -> None:
    (hello / "README.md").write_text("# Changed\n")
    git(hello, "commit", "-q", "-a", "-m", "Mine")
    git(hello, "push", "-q", "origin", "main")
    daemon.run("remove-repo", "--name", "hello")
    assert not hello.exists()


def test_a_remote_that_does_not_answer_is_not_set(
    hello: Path, daemon: DaemonProcess, local_remote: Any
) -> None:
    done = daemon.run("set-remote", "--name", "hello", "--remote", "/no/such.git", check=False)
    assert done.returncode == 1
    assert daemon.status("hello")["remote"] == str(local_remote.path)
    assert git(hello, "config", "remote.origin.url") == str(local_remote.path)
    moved = local_remote.path.with_name("moved.git")
    moved.symlink_to(local_remote.path)
    daemon.run("set-remote", "--name", "hello", "--remote", str(moved))
    assert daemon.status("hello")["remote"] == str(moved)
    assert git(hello, "config", "remote.origin.url") == str(moved)
    assert (hello / "src" / "main.c").read_text().startswith("int main")


def test_local_changes_are_listed(hello: Path, daemon: DaemonProcess) -> None:
    (hello / "README.md").write_text("# Changed\n")
    (hello / "new").mkdir()
    (hello / "new" / "file").write_text("x")
    (hello / "src" / "main.c").unlink()
    paths = {change["path"] for change in daemon.json("diff-overlay", "--name", "hello")}
    assert {"README.md", "src/main.c"} <= paths
    assert any(path.startswith("new/") for path in paths)


def test_prefetch_evict_and_read_again(hello: Path, daemon: DaemonProcess) -> None:
    daemon.wait_for("hello", "hydrated")
    daemon.run("evict-cache")
    assert daemon.status("hello")["hydration"]["blobs_here"] == 0
    daemon.run("prefetch", "--name", "hello", "src", "--wait")
    assert daemon.status("hello")["hydration"]["blobs_here"] == 1
    daemon.run("prefetch", "--name", "hello", "--wait")
    status = daemon.status("hello")["hydration"]
    assert status["blobs_here"] == status["blobs_total"] == 2
    done = daemon.run("prefetch", "--name", "hello", "no/such", check=False)
    assert done.returncode == 2
    daemon.run("evict-cache", "--max-bytes", "1G")
    assert daemon.status("hello")["hydration"]["blobs_here"] == 2
    daemon.run("gc")
    assert (hello / "README.md").read_text() == "# Hello\n"


def test_gc_of_a_gitdir_in_use(hello: Path, daemon: DaemonProcess, local_remote: Any) -> None:
    """The packs of fetches become one; what only this clone has is no promise of the remote."""
    daemon.wait_for("hello", "history")
    (hello / "README.md").write_text("# Mine\n")
    git(hello, "commit", "-q", "-a", "-m", "Mine")
    git(hello, "repack", "-q", "-d")
    packs = daemon.state / "repos" / "hello" / "git" / "objects" / "pack"
    own = {pack.stem for pack in packs.glob("*.pack")} - promisors(packs)
    assert own
    for number in range(3):
        local_remote.commit(f"file-{number}", str(number))
        daemon.run("fetch", "--name", "hello")
    before = len(promisors(packs))
    assert daemon.json("gc")["gitdirs"] == {"hello": {"packs_before": before, "packs_after": 1}}
    assert {pack.stem for pack in packs.glob("*.pack")} == own | promisors(packs)
    assert len(promisors(packs)) == 1
    git(hello, "fsck", "--connectivity-only")
    assert git(hello, "rev-list", "--count", "main..origin/main") == "3"
    assert (hello / "src" / "main.c").read_text().startswith("int main")
    assert git(hello, "status", "--porcelain") == ""


def promisors(packs: Path) -> set[str]:
    return {pack.stem for pack in packs.glob("*.promisor")}


def test_trace_and_top(hello: Path, daemon: DaemonProcess) -> None:
    (hello / "src" / "main.c").read_text()
    lines = daemon.run("trace", "--name", "hello", "--json").stdout.splitlines()
    assert any(json.loads(line)["path"] == "src/main.c" for line in lines)
    shown = daemon.run("top", "--count", "2", "--interval", "0.1s").stdout
    assert "hello" in shown
    (look,) = daemon.run("top", "--count", "1", "--json").stdout.splitlines()
    (repo,) = json.loads(look)["repos"]
    assert repo["name"] == "hello"
    assert repo["hydration"]["reads_waited"] >= 1
    assert "%" in shown


def test_status_again_and_again(hello: Path, daemon: DaemonProcess) -> None:
    options = ("--watch", "--interval", "10ms", "--count", "3")
    looks = daemon.run("status", *options, "--json").stdout.splitlines()
    assert [json.loads(look)[0]["name"] for look in looks] == ["hello"] * 3
    assert daemon.run("status", "--no-porcelain", *options).stdout.count("hello: mounted at") == 3


def test_names_cannot_act_on_the_terminal(daemon: DaemonProcess, local_remote: Any) -> None:
    odd = daemon.directory / "odd-\x1b[31m\x07"
    daemon.add_repo("hello", str(local_remote.path), "--mount-root", str(odd))
    for command in ("status", "list-repos"):
        shown = daemon.run(command, "--no-porcelain").stdout
        assert "\x1b" not in shown and "\x07" not in shown
        assert "odd-\\x1b[31m\\x07" in shown
        assert "/odd-%1B[31m%07/hello" in daemon.run(command).stdout
    assert daemon.status("hello")["mount_point"] == str(odd / "hello")
    refused = daemon.run("add-repo", "--name", "x", "--remote", f"{odd}.git", check=False)
    assert refused.returncode == 2 and "\x1b" not in refused.stderr


def test_a_daemon_without_mounts_ends(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    idle_daemon.start("--exit-when-idle", "8s")  # of which it takes some until it is added
    idle_daemon.add_repo("hello", str(local_remote.path))
    wait_until(lambda: idle_daemon.told("hello")["index_primed"], "the index")
    assert idle_daemon.process is not None and idle_daemon.process.poll() is None
    idle_daemon.run("unmount", "--name", "hello")
    assert idle_daemon.process.wait(60) == 0
    assert "nothing is mounted any more" in idle_daemon.log_tail()


def test_nobody_reads_the_output(hello: Path, daemon: DaemonProcess) -> None:
    """As in `artifact-fs status | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (("status",), ("status", "--json"), ("list-repos",), ("--help",)):
        done = subprocess.run(
            [PROGRAMS / "artifact-fs", *arguments],
            env=daemon.environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode != 0 and done.stderr == "", arguments
    os.close(writing)


def test_wait_gives_up(daemon: DaemonProcess, local_remote: Any) -> None:
    absent = str(local_remote.path) + ".later"
    daemon.run("add-repo", "--name", "hello", "--remote", absent, "--async")
    done = daemon.run("wait", "--name", "hello", "--timeout", "0.3s", check=False)
    assert done.returncode == 124
    wait_until(lambda: daemon.told("hello")["error"], "the first failure")
    os.symlink(local_remote.path, absent)
    daemon.run("wait", "--name", "hello", "--timeout", "120s")
    assert (daemon.mounts / "hello" / "README.md").exists()


def test_an_interrupted_add_leaves_nothing(
    daemon: DaemonProcess, proxy: Any, remote_repo: Any
) -> None:
    url = proxy.url(remote_repo().url)
    proxy.stall()
    adding = subprocess.Popen(
        [PROGRAMS / "artifact-fs", "add-repo", "--name", "slow", "--remote", url],
        env=daemon.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (daemon.state / "repos" / "slow").exists(), "the reservation")
    adding.send_signal(signal.SIGINT)
    _, said = adding.communicate(timeout=90)
    assert adding.returncode == 130
    assert "Traceback" not in said
    wait_until(lambda: not (daemon.state / "repos" / "slow").exists(), "the clean-up")
    assert daemon.json("list-repos") == []
    wait_until(lambda: not (daemon.mounts / "slow").exists(), "the mount point's end")
    proxy.resume()


def test_inside_a_mount_the_name_can_be_left_out(daemon: DaemonProcess, local_remote: Any) -> None:
    mount = daemon.add_repo("hello", str(local_remote.path))
    link = daemon.directory / "link"
    link.symlink_to(mount / "src")

    def there(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAMS / "artifact-fs", *arguments],
            cwd=where,
            env=daemon.environment | {"PWD": str(where)},
            capture_output=True,
            text=True,
        )

    for where in (mount, mount / "src", link):
        done = there(where, "fetch", "--json")
        assert json.loads(done.stdout)["result"] == "up to date", done.stderr
    outside = there(daemon.directory, "fetch")
    assert outside.returncode == 2
    assert "inside a mount" in outside.stderr
    for destructive in ("unmount", "remove-repo"):
        assert there(mount, destructive).returncode == 2
    link.unlink()


def test_the_status_tells_how_deep_the_history_is(daemon: DaemonProcess, local_remote: Any) -> None:
    local_remote.commit("README.md", "two")
    daemon.add_repo("hello", f"file://{local_remote.path}", "--depth", "1")
    wait_until(
        lambda: (
            "history cut off after 1 (--depth)" in daemon.run("status", "--no-porcelain").stdout
        ),
        "the depth",
    )


def test_a_mount_root_that_is_a_symlink(idle_daemon: DaemonProcess, local_remote: Any) -> None:
    """The mount comes back when its worker dies, and is found by both of its paths."""
    real = idle_daemon.directory / "real"
    real.mkdir()
    idle_daemon.mounts.symlink_to(real)
    idle_daemon.start()
    mount = idle_daemon.add_repo("hello", str(local_remote.path))
    os.kill(idle_daemon.status("hello")["pid"], signal.SIGKILL)
    wait_until(lambda: idle_daemon.told("hello")["restarts"] == 1, "another worker")
    idle_daemon.run("wait", "--name", "hello")
    assert (mount / "README.md").exists()
    idle_daemon.run("umount", real / "hello")
    assert not (mount / "README.md").exists()
    refused = idle_daemon.run(
        "add-repo", "--name", "x", "--remote", local_remote.path,
        "--mount-root", _link(idle_daemon.directory / "link", idle_daemon.state), check=False,
    )  # fmt: skip
    assert "overlap" in refused.stderr


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def test_what_asks_for_a_mount_that_is_not_there_yet(daemon: DaemonProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        remote = f"git://127.0.0.1:{silent.getsockname()[1]}/hello.git"
        daemon.run("add-repo", "--name", "hello", "--remote", remote, "--async")
        wait_until(lambda: daemon.told("hello")["state"] == "cloning", "the clone")
        for command in (("trace",), ("prefetch",), ("diff-overlay",), ("switch", "x")):
            refused = daemon.run(*command, "--name", "hello", check=False)
            error, hint = refused.stderr.splitlines()[-2:]
            assert error.startswith("error: hello is not mounted yet"), refused.stderr
            assert hint == "hint: artifact-fs wait --name hello"
        daemon.run("remove-repo", "--name", "hello", "--force")


@pytest.mark.parametrize(
    "command", [("top",), ("status", "--watch"), ("trace", "--follow", "--name", "hello")]
)
def test_watching_ends_with_ctrl_c_and_without_a_word(
    hello: Path, daemon: DaemonProcess, command: tuple[str, ...]
) -> None:
    (hello / "README.md").read_text()
    process = subprocess.Popen(
        [PROGRAMS / "artifact-fs", *command],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert (process.returncode, errors) == (0, "")


def test_trace_goes_on_after_a_restart(hello: Path, daemon: DaemonProcess) -> None:
    (hello / "src" / "main.c").read_text()
    with ControlClient(StateLayout(daemon.state)) as client:

        def trace(since: int) -> list[str]:
            args = {"since": since}
            answer = client.request("worker", name="hello", request="trace", args=args)
            return [record["path"] for record in answer]

        assert "src/main.c" in trace(0)
        assert trace(1_000_000) == trace(0)  # what an earlier process of the mount had counted


def test_the_login_name_of_ssh_is_shown(daemon: DaemonProcess) -> None:
    refused = daemon.run("add-repo", "--name", "x", "--remote", "ftp://host/x", check=False)
    assert "ssh://user@host/path" in refused.stderr


def test_a_record_of_a_switch_that_makes_no_sense(
    hello: Path, daemon: DaemonProcess, local_remote: Any
) -> None:
    """It costs the switch, never the mount."""
    git(hello, "checkout", "-q", "--detach")
    head = git(hello, "rev-parse", "HEAD")
    record = {
        **dict.fromkeys(("ref", "branch", "track")),
        **dict.fromkeys(("from", "to"), head),
        "tree": git(hello, "rev-parse", "HEAD^{tree}"),
        "shown": "main",
        "lock": 1,
        "advance": True,  # of no branch
    }
    daemon.run("unmount", "--name", "hello")
    path = daemon.state / "repos" / "hello" / "switch.json"
    path.write_text(json.dumps(record))
    daemon.run("remount", "--name", "hello")
    assert (hello / "README.md").exists()
    assert not path.exists()


def test_features_are_shown_and_can_be_switched_off(
    idle_daemon: DaemonProcess, local_remote: Any
) -> None:
    """What is off is named in `status -v` and the log, and git is right without its features."""
    daemon = idle_daemon
    refused = daemon.run("daemon", "--disable", "fsmonitro", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    error, hint = refused.stderr.splitlines()
    assert error.startswith("error: there is no feature 'fsmonitro'") and "fsmonitor" in hint
    off = {"kernel-open", "fsmonitor", "primed-index", "offered-objects"}
    daemon.start("--disable", ",".join(off))
    top = daemon.add_repo("hello", str(local_remote.path))
    daemon.run("wait", "--name", "hello", "--timeout", "120s")
    wait_until(lambda: daemon.told("hello")["index_primed"], "the index")
    states = daemon.status("hello")["features"]
    wanted = {name for name, state in states.items() if state["why"] and "switched" in state["why"]}
    assert wanted == off
    lines = daemon.run("status", "-v").stdout
    assert "kernel-open: switched off by ARTIFACT_FS_DISABLE" in lines
    assert "on        fast-loop: " in lines
    assert "switched off" not in daemon.run("status", "--no-porcelain").stdout
    assert "features that are off: kernel-open (switched off" in daemon.log.read_text()
    assert git(top, "status", "--porcelain") == ""
    (top / "README.md").write_text("changed\n")
    (top / "new").touch()
    assert git(top, "status", "--porcelain").splitlines() == ["M README.md", "?? new"]
    git(top, "commit", "-qam", "Change")
    assert git(top, "status", "--porcelain") == "?? new"
    assert "README.md | 2 +-" in git(top, "show", "--stat", "HEAD")


def test_a_look_up_that_is_never_answered_is_named_with_what_mends_it(
    idle_daemon: DaemonProcess, local_remote: Any, tmp_path: Path
) -> None:
    """The worker lives and answers everything else: only the age of the request tells."""
    daemon, fault = idle_daemon, tmp_path / "stuck"
    daemon.extra_environment["ARTIFACT_FS_STUCK"] = str(fault)
    daemon.start()
    top = daemon.add_repo("hello", str(local_remote.path), "--deadline", "8s", "--hydrate", "all")
    for state in ("history", "index", "hydrated"):
        daemon.wait_for("hello", state)
    fault.touch()
    with subprocess.Popen(["stat", top / ".artifact-fs/nothing"], stderr=subprocess.PIPE) as stat:
        try:
            wait_until(
                lambda: daemon.told_now("hello")["state"] == "not answering", "it is noticed"
            )
            mend = "artifact-fs remount --name hello --restart --force"
            shown = daemon.run("status", "--no-porcelain").stdout
            assert f"a lookup of the process {stat.pid} has no answer for " in shown
            assert "hello: not answering" in shown and mend in shown
            report = daemon.run("doctor", "--offline", check=False)
            assert report.returncode == 1
            assert f"a lookup of the process {stat.pid}" in report.stdout and mend in report.stdout
            fault.unlink()
            daemon.run(*mend.split()[1:])
            assert stat.wait(60) == 1
        finally:
            stat.kill()
    assert (top / "README.md").exists()
    assert "hello: mounted" in daemon.run("status", "--no-porcelain").stdout


def test_a_mount_that_hangs_is_named_with_what_mends_it(
    daemon: DaemonProcess, odd_repository: OddRepository
) -> None:
    mount = daemon.add_repo("hello", str(odd_repository.path))
    daemon.add_repo("other", str(odd_repository.path))
    daemon.wait_for("hello", "history")
    mend = "artifact-fs remount --name hello --restart --force"
    os.kill(daemon.status("hello")["pid"], signal.SIGSTOP)
    status = daemon.run("status", "--no-porcelain").stdout
    assert "hello: not answering" in status and mend in status
    assert "other: mounted" in status
    report = daemon.run("doctor", "--offline", check=False)
    assert report.returncode == 1
    assert "mount.stuck" in report.stdout and mend in report.stdout
    assert "other" not in report.stdout
    daemon.run(*mend.split()[1:])
    assert (mount / ".git").exists()
    assert "hello: mounted" in daemon.run("status", "--no-porcelain").stdout
