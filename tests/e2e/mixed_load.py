"""Programs that work in a mount while its processes die: `python -m tests.e2e.mixed_load …`.

Each runs until the file STOP appears, then prints one JSON line: how much it did, the longest that
one of its steps took, and every error that it saw. There must be none.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fs.mounting import git


class Load:
    """One program's account."""

    def __init__(self, stop: Path) -> None:
        self.stop = stop
        self.steps = 0
        self.longest_s = 0.0
        self.errors: list[str] = []

    def run(self, step: Callable[[], None]) -> None:
        while not self.stop.exists():
            began = time.monotonic()
            try:
                step()
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                if len(self.errors) > 20:
                    break
            self.steps += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)
        print(json.dumps({"steps": self.steps, "longest_s": self.longest_s, "errors": self.errors}))


def check(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def read(load: Load, mount: Path, reference: Path) -> None:
    """Everything is what it is in a clone, by `os.walk` and `open`; now and then without caches."""
    paths = [
        path.relative_to(reference)
        for path in reference.rglob("*")
        if not {".git", "written"} & set(path.parts) and path.is_file() and not path.is_symlink()
    ]
    chooser = random.Random(1)

    def step() -> None:
        path = chooser.choice(paths)
        if chooser.random() < 0.2:
            names = set(os.listdir(mount / path.parent))
            wanted = set(os.listdir(reference / path.parent)) - {".git", "written"}
            check(wanted <= names, f"{path.parent}: {sorted(wanted - names)} missing")
        fd = os.open(mount / path, os.O_RDONLY)
        try:
            if chooser.random() < 0.3:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            check(os.pread(fd, 1 << 26, 0) == (reference / path).read_bytes(), f"{path} differs")
        finally:
            os.close(fd)

    load.run(step)


def stay(load: Load, mount: Path, reference: Path) -> None:
    """An open file, a current folder and a mapping go on."""
    content = (reference / "assets/logo.png").read_bytes()
    fd = os.open(mount / "assets/logo.png", os.O_RDONLY)
    mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    os.chdir(mount / "src")
    names = sorted(os.listdir(reference / "src"))
    chooser = random.Random(2)

    def step() -> None:
        at = chooser.randrange(len(content))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        check(os.pread(fd, 5_000, at) == content[at : at + 5_000], "the open file differs")
        check(mapping[at : at + 100] == content[at : at + 100], "the mapping differs")
        check(sorted(os.listdir(".")) == names, "the current folder differs")
        os.stat("hello.c")
        os.statvfs(".")
        time.sleep(0.005)

    load.run(step)


def write(load: Load, mount: Path, reference: Path) -> None:
    """What was written is there, exactly once; in `reference` the same is done."""
    chooser = random.Random(3)
    here, there = mount / "written", reference / "written"
    for top in (here, there):
        top.mkdir(exist_ok=True)
    number = 0
    files: list[str] = []
    nameless: list[tuple[int, bytes]] = []

    def both(change: Callable[[Path], object]) -> None:
        change(here)
        change(there)

    def make() -> None:
        name, content = f"f{number}", os.urandom(chooser.choice((0, 10, 3_000, 200_000)))
        both(lambda top: (top / name).write_bytes(content))
        files.append(name)

    def append() -> None:
        name, content = chooser.choice(files), os.urandom(chooser.choice((1, 500, 9_000)))

        def change(top: Path) -> None:
            with open(top / name, "ab") as file:
                file.write(content)

        both(change)

    def move() -> None:
        old = files.pop(chooser.randrange(len(files)))
        new = chooser.choice(files) if files and chooser.random() < 0.3 else f"m{number}"
        both(lambda top: os.rename(top / old, top / new))
        if new not in files:
            files.append(new)

    def link() -> None:
        old, new = chooser.choice(files), f"l{number}"
        both(lambda top: os.link(top / old, top / new))
        files.append(new)

    def remove() -> None:
        name = files.pop(chooser.randrange(len(files)))
        both(lambda top: os.unlink(top / name))

    def remove_opened() -> None:
        """It goes on without its name, and is written to."""
        name = chooser.choice(files)
        if (there / name).stat().st_nlink > 1:
            return
        files.remove(name)
        fd = os.open(here / name, os.O_RDWR)
        content = (there / name).read_bytes()
        both(lambda top: os.unlink(top / name))
        nameless.append((fd, content))

    def use_nameless() -> None:
        if len(nameless) > 5:
            os.close(nameless.pop(0)[0])
        for at, (fd, content) in enumerate(nameless):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            check(os.fstat(fd).st_size == len(content), "the size of a file without a name")
            check(os.pread(fd, 1 << 20, 0) == content, "the content of a file without a name")
            more = os.urandom(20)
            os.pwrite(fd, more, len(content))
            nameless[at] = fd, content + more

    def folders() -> None:
        name = f"d{number}"
        both(lambda top: (top / name).mkdir())
        both(lambda top: (top / name / "inside").symlink_to("../anything"))
        both(lambda top: os.rename(top / name, top / f"{name}-moved"))
        both(lambda top: os.unlink(top / f"{name}-moved/inside"))
        both(lambda top: os.rmdir(top / f"{name}-moved"))

    def attributes() -> None:
        name = chooser.choice(files)
        mode = chooser.choice((0o600, 0o644, 0o755))
        size = chooser.choice((0, 7, 5_000))
        both(lambda top: os.chmod(top / name, mode))
        both(lambda top: os.truncate(top / name, size))

    def many() -> None:
        """A folder whose listing takes many requests, while it is emptied."""
        name = f"many{number}"
        both(lambda top: (top / name).mkdir())
        for file in range(150):
            (here / name / f"a-rather-long-name-of-a-file-{file:04}").touch()
        with os.scandir(here / name) as found:
            for entry in found:
                os.unlink(entry.path)
        os.rmdir(here / name)
        os.rmdir(there / name)

    changes = [make, make, append, append, move, link, remove, folders, attributes]
    changes += [remove_opened, use_nameless, use_nameless]

    def step() -> None:
        nonlocal number
        number += 1
        change = make if len(files) < 5 else chooser.choice(changes)
        many() if number % 40 == 0 else change()

    load.run(step)


def use_git(load: Load, mount: Path, reference: Path) -> None:
    """What git says is right, and a commit can be made and taken back."""
    del reference
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        file = mount / "for-git" / f"{number % 7}"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{number}\n")
        check("for-git/" in git("status", "--porcelain", cwd=mount), "status knows no new file")
        git("add", "for-git", cwd=mount)
        git("commit", "-q", "-m", f"Number {number}", cwd=mount)
        check(git("status", "--porcelain", "for-git", cwd=mount) == "", "committed, and not clean")
        git("log", "-3", "--stat", cwd=mount)
        git("diff", "HEAD~1", cwd=mount)
        git("reset", "-q", "--hard", "HEAD~1", cwd=mount)

    load.run(step)


KINDS = {"read": read, "stay": stay, "write": write, "git": use_git}


def start(kind: str, stop: Path, mount: Path, reference: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.e2e.mixed_load", kind, stop, mount, reference]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    KINDS[sys.argv[1]](Load(Path(sys.argv[2])), Path(sys.argv[3]), Path(sys.argv[4]))
