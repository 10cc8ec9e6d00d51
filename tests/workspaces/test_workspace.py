"""One workspace: what can be done in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from artifactfs.errors import ArtifactFSError, InvalidInput
from artifactfs.workspaces.results import CommandFailed
from tests.e2e.processes import DaemonProcess, wait_until
from tests.workspaces.conftest import Open, git


def test_files_and_what_has_changed(open_workspace: Open) -> None:
    with open_workspace(on_exit="discard") as ws:
        assert ws.read("README.md") == "# Hello\n"
        assert ws.list() == (".gitignore", "README.md", "src/")
        assert ws.list("src") == ("main.c",)
        ws.write("new/deep/file.txt", "new\n")
        ws.write("tool", b"#!/bin/sh\n", executable=True)
        ws.write("build.log", "ignored")
        ws.write("README.md", "# Goodbye\n")
        (ws.path / "src" / "main.c").unlink()
        assert {(c.path, c.code, c.untracked) for c in ws.changes()} == {
            ("README.md", " M", False),
            ("src/main.c", " D", False),
            ("new/deep/file.txt", "??", True),
            ("tool", "??", True),
        }
        found = ws.grep("^new|Good")
        assert {(m.path, m.line, m.text) for m in found} == {
            ("README.md", 1, "# Goodbye"),
            ("new/deep/file.txt", 1, "new"),
        }
        assert ws.grep("goodbye", "src", ignore_case=True) == ()
        assert ws.grep("#!/bin", fixed=True)[0].path == "tool"
        ws.diff()
        assert ws.changes()[0].code == " M", "the index was not touched"


def test_a_diff_can_be_applied_to_a_clone(
    open_workspace: Open, remote: Path, tmp_path: Path
) -> None:
    """Commits, changes and new files, binary ones too, in one patch."""
    with open_workspace(on_exit="discard") as ws:
        ws.write("README.md", "# Committed\n")
        ws.commit("One")
        ws.write("data.bin", bytes(range(256)))
        (ws.path / "src" / "main.c").unlink()
        patch = ws.diff()
        assert "data.bin" not in ws.diff("src")
    git("clone", "-q", remote, tmp_path / "other")
    subprocess.run(["git", "-C", tmp_path / "other", "apply"], input=patch.encode(), check=True)
    assert (tmp_path / "other" / "README.md").read_text() == "# Committed\n"
    assert (tmp_path / "other" / "data.bin").read_bytes() == bytes(range(256))
    assert not (tmp_path / "other" / "src").exists()


def test_paths_outside_are_refused(open_workspace: Open, tmp_path: Path) -> None:
    with open_workspace(on_exit="discard") as ws:
        (ws.path / "out").symlink_to(tmp_path)
        for path in ("../x", "/etc/passwd", "out/x", ".git", ".git/config", "a/../../x"):
            with pytest.raises(InvalidInput):
                ws.read(path)
            with pytest.raises(InvalidInput):
                ws.write(path, "x")
    assert not (tmp_path / "x").exists()


def test_commands(
    open_workspace: Open, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("ARTIFACT_FS_TOKEN", "ARTIFACTS_TOKEN", "ARTIFACTS_API_TOKEN", "GIT_DIR"):
        monkeypatch.setenv(name, "secret-word")
    with open_workspace() as ws:
        assert os.path.samefile(ws.run("pwd", show=False).stdout.strip(), ws.path)
        pieces: list[tuple[str, str]] = []
        done = ws.run(
            "echo out; echo err >&2; exit 3", on_output=lambda *p: pieces.append(p), env={"A": "1"}
        )
        assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
        assert not done.ok and ws.last_run == done
        assert sorted(pieces) == [("stderr", "err\n"), ("stdout", "out\n")]
        assert capfd.readouterr() == ("out\n", "err\n")
        words = ws.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", "a b"], show=False)
        assert words.stdout == "['a b']\n"
        assert ws.run(["cat"], given="é" * 100_000, show=False).stdout == "é" * 100_000
        assert ws.run(["cat"], show=False).stdout == "", "no input"
        assert "secret-word" not in ws.run("env; cat .git/config", show=False).stdout
        assert ws.run("pwd", cwd="src", show=False).stdout.endswith("/src\n")
        with pytest.raises(CommandFailed, match="exit code 1"):
            ws.run("false", check=True)
        with pytest.raises(InvalidInput, match="no-such-program"):
            ws.run(["no-such-program"])
        with pytest.raises(InvalidInput):
            ws.run("")
    assert capfd.readouterr() == ("", ""), "a workspace without work goes without a word"


def test_a_command_whose_time_is_over(open_workspace: Open, tmp_path: Path) -> None:
    """It ends with all that it has started. What was left in the background is not waited for."""
    with open_workspace() as ws:
        pid_file = tmp_path / "pid"
        hang = f"trap '' TERM; sleep 1000 & echo $! > {pid_file}; echo begun; wait"
        done = ws.run(hang, timeout_s=5, show=False)
        assert (done.timed_out, done.exit_code, done.stdout) == (True, 124, "begun\n")
        wait_until(lambda: not Path("/proc", pid_file.read_text().strip()).exists(), "its end")
        began = time.monotonic()
        assert ws.run("sleep 1000 & echo $!", show=False).ok
        assert time.monotonic() - began < 100
        # The mount is in use by what was left behind: it goes all the same.
    assert not ws.path.exists()


def test_commit_and_push(open_workspace: Open, remote: Path) -> None:
    with open_workspace(branch="topic", author="Ada <ada@example.org>") as ws:
        assert ws.branch == "topic"
        assert ws.commit("Nothing") is None
        ws.write("a", "a")
        ws.write("b", "b")
        first = ws.commit("Only a", "a")
        assert [c.path for c in ws.changes()] == ["b"]
        second = ws.commit("The rest\n\nand why")
        assert ws.head == second and ws.changes() == ()
        assert ws.unsaved().commits == 2
        pushed = ws.push()
        assert (pushed.ref, pushed.commit) == ("refs/heads/topic", second)
        assert ws.push("other").ref == "refs/heads/other"
        assert not ws.unsaved()
    assert git("-C", remote, "log", "--format=%an %s", "topic").splitlines() == [
        "Ada The rest",
        "Ada Only a",
        "A. Author First",
    ]
    assert git("-C", remote, "rev-parse", "other") == second != first


def test_what_was_pushed_is_saved_without_history_too(open_workspace: Open, remote: Path) -> None:
    """A clone with a depth follows one branch: git does not note what was pushed to another."""
    with open_workspace(depth=1) as ws:
        ws.write("a", "a")
        made = ws.commit("A")
        ws.push("other")
        assert not ws.unsaved()
        ws.write("a", "b")
        ws.commit("B")
        assert ws.unsaved().commits == 1
        ws.push("other")
    assert git("-C", remote, "rev-parse", "other^") == made


def test_a_refused_push_says_why(open_workspace: Open, remote: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    with open_workspace(on_exit="discard") as ws:
        (clone / "x").write_text("x")
        git("-C", clone, "add", "x")
        git("-C", clone, "commit", "-qm", "Faster")
        git("-C", clone, "push", "-q", remote, "main")
        ws.write("y", "y")
        ws.commit("Slower")
        with pytest.raises(ArtifactFSError, match="push"):
            ws.push()
        with pytest.raises(InvalidInput):
            ws.push("-f")


def test_an_author_is_made_where_git_has_none(
    open_workspace: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (
        "GIT_AUTHOR_NAME",
        "GIT_AUTHOR_EMAIL",
        "GIT_COMMITTER_NAME",
        "GIT_COMMITTER_EMAIL",
    ):
        monkeypatch.delenv(name)
    settings = tmp_path / "gitconfig"
    settings.write_text("[user]\n\tuseConfigOnly = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    with open_workspace(on_exit="discard") as ws:
        ws.write("a", "a")
        assert ws.commit("By nobody in particular") is not None
        assert "@" in ws.git("log", "-1", "--format=%ae")
        ws.run("echo b > b && git add b && git commit -qm 'By a command'", check=True)


def test_prefetch_ref_and_a_folder_of_ones_own(
    open_workspace: Open, remote: Path, tmp_path: Path
) -> None:
    git("-C", remote, "tag", "v1", "main")
    where = tmp_path / "here"
    with open_workspace(at=where, ref="v1") as ws:
        assert ws.path == where and ws.branch is None
        assert ws.prefetch("src") == 1
        usage = ws.usage()
        assert usage.memory_bytes > 1 << 20 and usage.disk_bytes > 1 << 12
        assert usage.received_bytes > 0
        assert ws.base == git("-C", remote, "rev-parse", "v1")


def test_a_daemon_of_its_own(idle_daemon: DaemonProcess, remote: Path) -> None:
    """In a fresh interpreter, as a script has it, where none runs."""
    script = f"""
import artifactfs, time
began = time.monotonic()
with artifactfs.workspace({str(remote)!r}) as ws:
    print(ws.read("README.md"), time.monotonic() - began)
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=idle_daemon.environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("# Hello")
        assert idle_daemon.json("list-repos") == []
        for directory in (idle_daemon.state, idle_daemon.state / "workspaces"):
            assert directory.stat().st_mode & 0o077 == 0
    finally:
        idle_daemon.run("daemon", "stop")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"given": None}, "needs a remote"),
        ({"given": None, "name": "never"}, "no workspace never"),
        ({"given": "/nowhere/at/all.git"}, "nowhere"),
        ({"ref": "no-such-ref"}, "no-such-ref"),
        ({"on_exit": "forget"}, "on_exit"),
        ({"name": "a/b"}, "usable name"),
        ({"branch": "a..b"}, "a..b"),
    ],
)
def test_bad_input_leaves_nothing(
    daemon: DaemonProcess, open_workspace: Open, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArtifactFSError, match=words), open_workspace(**options):
        pass
    assert daemon.json("list-repos") == []


def test_importing_the_package_costs_nothing() -> None:
    script = "import artifactfs, sys; print('trio' in sys.modules, 'subprocess' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert printed.stdout == "False False\n"


def test_what_is_mounted_below_costs_nothing(open_workspace: Open) -> None:
    """Where the kernel takes the writes, the base tree is mounted within its own folder."""
    with open_workspace(branch="large", on_exit="push") as ws:
        ws.write("large", os.urandom(4 << 20))
        ws.commit("Large")
    with open_workspace(ref="large") as ws:
        assert ws.usage().disk_bytes < 2 << 20
