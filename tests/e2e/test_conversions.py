"""A repository whose attributes convert files, in the mount and in a plain clone side by side."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.fast_import import FILE, FastImport, run_git
from tests.e2e.comparison import assert_same_tree
from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until

ROT13 = "tr 'A-Za-z' 'N-ZA-Mn-za-m'"
CONFIG = f"""
[filter "rot13"]
\tsmudge = "{ROT13}"
\tclean = "{ROT13}"
\trequired = true
[user]
\tname = A
\temail = a@example.org
"""
ATTRIBUTES = b"*.bat text eol=crlf\n*.rot filter=rot13\n*.id ident\n*.psd filter=lfs -text\n"
START = {
    b".gitattributes": ATTRIBUTES,
    b".gitignore": b"*.o\n",
    b"deep/er/.gitattributes": b"*.rc working-tree-encoding=UTF-16\nunix.bat eol=lf\n",
    b"deep/er/strings.rc": "Grüße\n".encode(),
    b"deep/er/unix.bat": b"one\n",
    b"deep/run.bat": b"one\ntwo\n",
    b"a.bat": b"one\ntwo\n",
    b"b.bat": b"one\n",
    b"secret.rot": b"Hello\n",
    b"version.id": b"$Id$\n",
    b"image.psd": b"version https://git-lfs.github.com/spec/v1\n",
    b"README": b"hello\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.git"
    with FastImport(path) as stream:

        def commit(message: str, files: dict[bytes, bytes]) -> None:
            blobs = {name: (FILE, stream.blob(content)) for name, content in files.items()}
            stream.commit(message, blobs)

        commit("Start\n", START)
        stream.tag("start")
        more = {b"a.bat": b"one\n2\n", b"new.bat": b"new\n", b"secret.rot": b"Bye\n"}
        commit("Content\n", more)
        stream.tag("content")
        commit("Rules\n", {b".gitattributes": ATTRIBUTES.replace(b"*.bat text eol=crlf\n", b"")})
        stream.tag("rules")
    return path


class ConfiguredDaemon(DaemonProcess):
    """A daemon of a user with a git configuration."""

    config = Path("/dev/null")

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"GIT_CONFIG_GLOBAL": str(self.config)}


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[ConfiguredDaemon]:
    daemon = ConfiguredDaemon()
    daemon.config = tmp_path / "config"
    daemon.config.write_text(CONFIG)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.clean_up()
        shutil.rmtree(daemon.directory, ignore_errors=True)


class Sides:
    def __init__(self, daemon: ConfiguredDaemon, mount: Path, clone: Path) -> None:
        self.mount, self.clone, self._daemon = mount, clone, daemon

    def git(self, *arguments: str, top: Path) -> str:
        environment = self._daemon.environment | {
            "GIT_AUTHOR_DATE": "1600000000 +0000",
            "GIT_COMMITTER_DATE": "1600000000 +0000",
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=top,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return f"{done.stdout}→ {done.returncode}"

    def both(self, *arguments: str) -> str:
        ours = self.git(*arguments, top=self.mount)
        assert ours == self.git(*arguments, top=self.clone)
        return ours

    def compare(self) -> None:
        assert_same_tree(self.mount, self.clone, content=False)
        assert_same_tree(self.mount, self.clone)
        self.both("status", "--porcelain=v2")


def age(clone: Path, environment: dict[str, str]) -> None:
    """As if it had been made long ago: git reads again what is as young as its index."""
    for folder, folders, names in os.walk(clone):
        folders[:] = [name for name in folders if name != ".git"]
        for name in names:
            os.utime(os.path.join(folder, name), (1_500_000_000, 1_500_000_000))
    subprocess.run(["git", "-C", clone, "status", "-s"], env=environment, check=True)


@pytest.fixture(params=["kernel", "fuse"])
def sides(
    request: pytest.FixtureRequest,
    configured: ConfiguredDaemon,
    remote_repo: Callable[..., ServedRepository],
    source: Path,
    tmp_path: Path,
) -> Sides:
    url = remote_repo(source).url
    clone = tmp_path / "clone"
    command = ["git", "clone", "-q", "--branch", "start", url, str(clone)]
    subprocess.run(command, env=configured.environment, check=True, stderr=subprocess.DEVNULL)
    age(clone, configured.environment)
    if request.param == "kernel" and os.geteuid() != 0:
        pytest.skip("only root may mount an overlayfs")
    mount = configured.add_repo("work", url, "--ref", "start", "--writes", request.param)
    return Sides(configured, mount, clone)


def serves(daemon: DaemonProcess, before: int) -> bool:
    """Whether another worker than `before` does."""
    found = daemon.status("work")
    return found["state"] == "mounted" and found["pid"] not in (None, before)


def test_the_first_status_knows_no_wrong_size(sides: Sides, configured: ConfiguredDaemon) -> None:
    assert sides.both("status", "--porcelain=v2") == "→ 0"
    sizes = {}
    for entry in run_git("-C", sides.mount, "ls-files", "--debug").replace("\n  ", " ").split("\n"):
        if entry:
            sizes[entry.split()[0]] = int(entry.partition("size: ")[2].split()[0])
    assert sizes["README"] == 6 and sizes["image.psd"] == 43 and sizes["deep/er/unix.bat"] == 4
    for converted in ("a.bat", "secret.rot", "version.id", "deep/er/strings.rc", "deep/run.bat"):
        assert sizes[converted] == 0, converted
    sides.compare()
    worker = configured.worker(sides.mount)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: serves(configured, worker), "the mount is back")
    sides.compare()


def test_a_day_of_work(sides: Sides, configured: ConfiguredDaemon) -> None:
    sides.both("checkout", "-q", "-b", "topic")
    for top in (sides.mount, sides.clone):
        with (top / "a.bat").open("ab") as file:
            file.write(b"three\r\n")
        with (top / "secret.rot").open("ab") as file:
            file.write(b"Hello\n")
        (top / "made.bat").write_bytes(b"made\r\n")
        (top / "b.bat").rename(top / "c.txt")
    sides.compare()
    assert "+three" in sides.both("diff")
    sides.both("add", "-A")
    sides.both("commit", "-qm", "Work")
    sides.compare()
    sides.both("stash", "list")
    sides.both("checkout", "-q", "content")
    sides.compare()
    sides.both("checkout", "-q", "topic")
    sides.compare()
    sides.both("revert", "--no-edit", "HEAD")
    sides.compare()
    configured.stop()
    configured.start()
    wait_until(lambda: os.path.exists(sides.mount / "README"), "the mount is back")
    sides.compare()


def test_switching(sides: Sides, configured: ConfiguredDaemon) -> None:
    for target in ("content", "start", "rules", "start", "content"):
        configured.run("switch", "--name", "work", target)
        sides.git("checkout", "-q", target, top=sides.clone)
        sides.compare()
        assert sides.both("status", "--porcelain") == "→ 0"
