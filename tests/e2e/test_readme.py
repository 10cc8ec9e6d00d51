"""The README's commands are run, in its order, and do what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fast_import import FILE, FastImport, quiet_git_environment
from tests.e2e.processes import (
    IN_USE,
    PROGRAMS,
    DaemonProcess,
    ServedRepository,
    on_free_port,
)

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()

EXACT = ("git switch", "git diff --stat", "git log --oneline | wc -l")
"""Commands whose output the README shows as it is for any repository like that one."""


def sessions() -> list[tuple[str, str]]:
    """Return (command, output) of every ``console`` block, in order."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def shell_block(containing: str) -> str:
    """Return the one ``sh`` block with that text."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    (block,) = (block for block in blocks if containing in block)
    return str(block)


@pytest.fixture
def example_repository(tmp_path: Path) -> Path:
    """Small, with the files, the tag and the number of commits that the README shows."""
    target = tmp_path / "django.git"
    with FastImport(target) as stream:
        paginator = b"class Paginator:\n    def __init__(self, orphans=0): ...\n"
        files = {
            b"django/core/paginator.py": (FILE, stream.blob(paginator)),
            b"README.rst": (FILE, stream.blob(b"Example\n")),
        }
        stream.commit("First\n", files)
        stream.tag("5.0")
        for number in range(3205):
            note = stream.blob(b"%d\n" % number)
            stream.commit(f"Note {number}\n", {b"docs/note": (FILE, note)})
    return target


@pytest.mark.parametrize("line", ["artifact-fs mount", "artifact-fs daemon"])
def test_mounting(
    line: str,
    idle_daemon: DaemonProcess,
    example_repository: Path,
) -> None:
    """Both blocks as they are, each at home in a folder of its own; then a commit."""
    home = idle_daemon.directory / "home"
    home.mkdir()
    remote = example_repository.rename(example_repository.with_name("hello.git"))
    block = shell_block(line).replace("https://host/org/hello.git", str(remote))
    block = block.replace("https://host/org/tools.git", str(remote))
    block = block.replace("$PWD/.venv/bin", str(PROGRAMS))
    environment = idle_daemon.environment | {
        "HOME": str(home),
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
    }
    commit = "echo more >> README.rst && git commit -qam More && git log -1 --format=%s && pwd"
    done = subprocess.run(
        ["bash", "-ec", f"{block}{commit}; cd ~; kill %1 || true"],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(idle_daemon.directory / "errors").open("w"),
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, (idle_daemon.directory / "errors").read_text()
    where = home / "mnt" / "tools" if "daemon" in line else home / "hello"
    assert done.stdout.splitlines()[-2:] == ["More", str(where)]


def test_sessions_in_a_mount(
    daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    example_repository: Path,
) -> None:
    mount = daemon.add_repo("django", remote_repo(example_repository).url)
    environment = daemon.environment | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    assert len(sessions()) > 8
    for command, expected in sessions():
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=mount,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        if command.startswith(EXACT):
            assert done.stdout == expected, command
    log = subprocess.run(
        ["git", "-C", str(mount), "log", "-1", "--format=%s"], capture_output=True, text=True
    )
    assert log.stdout == "Default to one orphan\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_server_section(tmp_path: Path) -> None:
    printed = b""

    def run(port: int) -> None:
        nonlocal printed
        printed = run_server_section(tmp_path, port)

    on_free_port(run)
    answer = json.loads(printed[printed.index(b"{") :])
    assert answer["success"]
    assert answer["result"]["remote"].endswith("/git/team/hello.git")
    assert answer["result"]["token"]


def run_server_section(tmp_path: Path, port: int) -> bytes:
    """What its commands print. Raises: RuntimeError with the errors where the port is taken."""
    block = shell_block("namespaces/team").replace("8080", str(port))
    block = block.replace("curl -s", "curl -s --retry 60 --retry-connrefused --retry-delay 1")
    errors = tmp_path / "errors"
    process = subprocess.Popen(
        ["bash", "-c", f"{block}\nkill %1"],
        cwd=tmp_path,
        env=quiet_git_environment() | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if IN_USE in (said := errors.read_text()):
        raise RuntimeError(said)
    return printed
