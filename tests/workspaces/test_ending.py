"""How a workspace ends: no work of it is silently gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifactfs.errors import AlreadyExists, ArtifactFSError
from artifactfs.workspaces.results import UnsavedWork
from tests.e2e.mount_table import mounted_at
from tests.e2e.processes import DaemonProcess
from tests.workspaces.conftest import Open, git


def names(daemon: DaemonProcess) -> list[str]:
    return [repo["name"] for repo in daemon.json("list-repos")]


def test_kept_is_said_and_comes_back(
    daemon: DaemonProcess, open_workspace: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_workspace() as ws:
        ws.write("a", "a")
        made = ws.commit("Kept")
        ws.write("b", "not committed")
    assert not mounted_at(ws.path)
    said = capfd.readouterr().err
    assert said == (
        f"{ws.name}: kept 1 commit and 1 changed path of {ws.path}; "
        f"back with: artifact-fs remount {ws.name}\n"
    )
    daemon.run("remount", ws.name)
    assert (ws.path / "b").read_text() == "not committed"
    daemon.run("unmount", ws.name)
    with open_workspace(name=ws.name, on_exit="discard") as again:
        assert (again.path, again.head) == (ws.path, made)
        assert again.read("b") == "not committed"
    assert names(daemon) == [] and not ws.path.exists()


def test_after_an_error_it_is_kept(
    daemon: DaemonProcess, open_workspace: Open, remote: Path
) -> None:
    for how in ("keep", "push", "refuse"):
        with pytest.raises(ZeroDivisionError), open_workspace(name=how, on_exit=how) as ws:
            ws.write("a", how)
            ws.commit("Half done")
            raise ZeroDivisionError
    assert names(daemon) == ["keep", "push", "refuse"]
    assert git("-C", remote, "log", "--format=%s", "--all") == "First"


def test_push_at_the_end(
    daemon: DaemonProcess, open_workspace: Open, remote: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Commits go to the branch, what is not committed as a snapshot: another one can go on."""
    with open_workspace(branch="topic", on_exit="push") as ws:
        ws.write("a", "a")
        ws.commit("Done")
        ws.write("b", "not committed")
        early = ws.snapshot("early")
    assert names(daemon) == []
    assert git("-C", remote, "log", "-1", "--format=%s", "topic") == "Done"
    name = capfd.readouterr().err.rpartition(" ")[2].strip()
    with open_workspace() as other:
        other.restore(name)
        assert (other.read("b"), other.read("a"), other.git("log", "-1", "--format=%s")) == (
            "not committed",
            "a",
            "Done\n",
        )
        other.restore(early)


def test_a_push_that_is_refused_keeps(
    daemon: DaemonProcess, open_workspace: Open, remote: Path
) -> None:
    hook = remote / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(ArtifactFSError, match="push"), open_workspace(on_exit="push") as ws:
        ws.write("a", "a")
        ws.commit("Refused")
    assert names(daemon) == [ws.name]
    daemon.run("remount", ws.name)
    assert git("-C", ws.path, "log", "-1", "--format=%s") == "Refused"


def test_refuse_and_discard(daemon: DaemonProcess, open_workspace: Open) -> None:
    with pytest.raises(UnsavedWork, match="1 changed path"), open_workspace(on_exit="refuse") as ws:
        ws.write("a", "a")
    assert names(daemon) == [ws.name]
    with open_workspace(on_exit="discard") as other:
        other.write("a", "a")
        other.commit("Gone")
    assert names(daemon) == [ws.name]
    with open_workspace(on_exit="refuse"):
        pass


@pytest.mark.parametrize("work", ["stash", "branch", "snapshot", "detached"])
def test_every_kind_of_work_is_kept(daemon: DaemonProcess, open_workspace: Open, work: str) -> None:
    with open_workspace() as ws:
        if work == "detached":
            ws.git("switch", "-q", "--detach")
        ws.write("README.md", "changed")
        if work == "stash":
            ws.git("stash")
        elif work == "snapshot":
            ws.snapshot()
            ws.git("checkout", "README.md")
        else:
            ws.commit("Somewhere")
        if work == "branch":
            ws.git("branch", "aside")
            ws.git("reset", "-q", "--hard", "HEAD^")
        assert ws.unsaved() and not ws.changes()
    assert names(daemon) == [ws.name]
    refused = daemon.run("remove-repo", ws.name, check=False)
    assert refused.returncode == 1 and ws.name in refused.stderr


SCRIPT = """
import artifactfs, sys, time
with artifactfs.workspace(sys.argv[1], on_exit="discard", hydrate="none") as ws:
    if sys.argv[2] == "work":
        ws.write("a", "a")
        ws.commit("Before the end")
    print(ws.name, ws.path, flush=True)
    ws.run("sleep 1000")
"""


@pytest.mark.parametrize("work", ["work", "none"])
def test_sigkill_is_keep(daemon: DaemonProcess, remote: Path, work: str) -> None:
    """``gc`` unmounts what a dead process left, whoever still runs in it; work stays."""
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(remote), work],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert script.stdout is not None
    name, path = script.stdout.readline().split()
    assert daemon.json("gc")["workspaces"] == [], "it is open"
    script.send_signal(signal.SIGKILL)
    script.wait()
    script.stdout.close()
    assert mounted_at(Path(path))
    kept = "1 commit" if work == "work" else None
    assert daemon.json("gc")["workspaces"] == [{"name": name, "kept": kept}]
    assert not mounted_at(Path(path))
    assert daemon.json("gc")["workspaces"] == []
    assert names(daemon) == ([name] if work == "work" else [])
    if work == "work":
        daemon.run("remount", name)
        assert git("-C", path, "log", "-1", "--format=%s") == "Before the end"


def test_one_that_is_open_is_not_opened_twice(open_workspace: Open) -> None:
    with open_workspace(name="mine"):
        with pytest.raises(AlreadyExists), open_workspace(name="mine"):
            pass
        with pytest.raises(AlreadyExists), open_workspace("/somewhere/else", name="mine"):
            pass


def test_the_daemon_ends_meanwhile(idle_daemon: DaemonProcess, remote: Path) -> None:
    """Work is on the disk, and there again with the next daemon."""
    import artifactfs

    idle_daemon.start()
    state: Any = idle_daemon.state
    with pytest.raises(ArtifactFSError), artifactfs.workspace(str(remote), state_root=state) as ws:
        ws.write("a", "a")
        ws.commit("Kept")
        idle_daemon.stop()
    idle_daemon.start()
    daemon_names = names(idle_daemon)
    assert daemon_names == [ws.name]
    assert idle_daemon.json("gc")["workspaces"] == [{"name": ws.name, "kept": "1 commit"}]
    idle_daemon.run("remount", ws.name)
    assert git("-C", ws.path, "log", "-1", "--format=%s") == "Kept"
