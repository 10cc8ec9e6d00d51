"""Random changes, and after each git with its caches beside git without them."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fs.mounting import Mount, git, renameat2

STEPS = 40
NAMES = ("a", "A", "b", "src", "SRC", "docs", "new", ".gitignore", "x.o")
IGNORED = ("*.o\n", "docs/\n", "new\n!x.o\n", "")


def plain_status(top: Path, *options: str, **env: str) -> str:
    """What git says without its caches. It must not write the index, which would lose them: then
    nothing would be there that the next git believes."""
    plain = ("-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false")
    arguments = (*plain, "status", "--porcelain", *options)
    return git(*arguments, cwd=top, GIT_OPTIONAL_LOCKS="0", **env)


class RandomChanges:
    """Changes of a mount by programs and by git, in an order that `seed` decides."""

    def __init__(self, mount: Mount, seed: int) -> None:
        self.mount, self.top = mount, mount.path
        self.random = random.Random(seed)
        self.commits = [git("rev-parse", "HEAD", cwd=self.top).strip()]

    def directories(self) -> list[Path]:
        found = [Path(path) for path, names, _ in os.walk(self.top)]
        return [path for path in found if ".git" not in path.parts]

    def directory(self) -> Path:
        return self.random.choice(self.directories())

    def path(self) -> Path:
        """Something that is there, or not."""
        directory = self.directory()
        there = [name for name in os.listdir(directory) if name != ".git"]
        return directory / self.random.choice([*there[:6], *NAMES])

    def step(self) -> str:
        """Change something; returns what was done. A change that cannot be made is none."""
        name = self.random.choice([name for name in dir(self) if name.startswith("do_")])
        with suppress(FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
            try:
                getattr(self, name)()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EINVAL, errno.EPERM, errno.EBUSY):
                    raise
        return name

    def do_write(self) -> None:
        self.path().write_text(self.random.choice("xyz"))

    def do_write_and_restore(self) -> None:
        path = self.path()
        before = path.read_bytes()
        path.write_text("for a moment")
        path.write_bytes(before)

    def do_replace_by_rename(self) -> None:
        temporary = self.directory() / "temporary"
        temporary.write_text("renamed\n")
        os.replace(temporary, self.path())

    def do_come_and_go(self) -> None:
        path = self.directory() / "short-lived"
        path.touch()
        path.unlink()

    def do_make_directory(self) -> None:
        (self.directory() / self.random.choice(NAMES) / "deep").mkdir(parents=True)

    def do_rename(self) -> None:
        os.rename(self.path(), self.path())

    def do_change_case(self) -> None:
        path = self.path()
        os.rename(path, path.with_name(path.name.swapcase()))

    def do_exchange(self) -> None:
        renameat2(self.path(), self.path(), 2)

    def do_unlink(self) -> None:
        self.path().unlink()

    def do_remove_tree(self) -> None:
        if self.random.random() < 0.4 and not (path := self.path()).is_symlink():
            shutil.rmtree(path)

    def do_chmod(self) -> None:
        path = self.path()
        path.chmod(path.stat().st_mode ^ 0o111)

    def do_ignore(self) -> None:
        (self.directory() / ".gitignore").write_text(self.random.choice(IGNORED))

    def do_link(self) -> None:
        os.link(self.path(), self.directory() / self.random.choice(NAMES))

    def do_symlink(self) -> None:
        self.path().symlink_to("README")

    def do_restart(self) -> None:
        self.mount.restart(kill=self.random.random() < 0.5)

    def do_compact(self) -> None:
        self.mount.ask("compact")

    def do_add(self) -> None:
        git("add", "-A", cwd=self.top)

    def do_commit(self) -> None:
        git("add", "-A", cwd=self.top)
        git("commit", "-qm", "step", "--allow-empty", cwd=self.top)
        self.commits.append(git("rev-parse", "HEAD", cwd=self.top).strip())

    def do_other_index(self) -> None:
        other = git("rev-parse", "--absolute-git-dir", cwd=self.top).strip() + "/other"
        git("add", "-A", cwd=self.top, GIT_INDEX_FILE=other)

    def do_index_format(self) -> None:
        options = ("--index-version=2", "--index-version=4", "--split-index", "--no-split-index")
        git("update-index", self.random.choice(options), cwd=self.top)

    def do_stash(self) -> None:
        git("stash", "-qu", cwd=self.top)

    def do_checkout(self) -> None:
        git("checkout", "-qf", self.random.choice(self.commits), cwd=self.top)

    def do_clean(self) -> None:
        git("clean", "-qfdx", cwd=self.top)

    def do_change_during_status(self) -> None:
        """Git may see the change or not; the next look has to."""
        path = self.directory() / "meanwhile"
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                path.write_text(f"{number}")
                if number % 3 == 0:
                    path.unlink()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(3):
                git("status", "--porcelain", cwd=self.top)
        finally:
            stop.set()
            writer.join()


def compare(top: Path) -> None:
    """Git with its caches says what it says without them: of the mount's index, and of another."""
    assert git("status", "--porcelain", cwd=top) == plain_status(top)
    other = {"GIT_INDEX_FILE": f"{git('rev-parse', '--absolute-git-dir', cwd=top).strip()}/other"}
    if os.path.exists(other["GIT_INDEX_FILE"]):
        assert git("status", "--porcelain", cwd=top, **other) == plain_status(top, **other)


def check(mount: Mount, seed: int, steps: int) -> None:
    mount.make_gitdir()
    changes = RandomChanges(mount, seed)
    done = []
    for number in range(steps):
        with suppress(subprocess.CalledProcessError):  # git may have nothing to stash
            done.append(changes.step())
        for _ in range(2):
            try:
                compare(mount.path)
            except AssertionError as error:
                error.add_note(f"seed {seed}, step {number}: {done[-5:]}")
                raise
    everything = ("--ignored", "--ignore-submodules=none")
    cached = git("status", "--porcelain", *everything, cwd=mount.path)
    assert cached == plain_status(mount.path, *everything), seed


@pytest.mark.parametrize("seed", range(3))
def test_random_changes(mount: Mount, seed: int) -> None:
    check(mount, seed, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_changes(mount: Mount, seed: int) -> None:
    check(mount, seed, 4 * STEPS)
