"""Programs that work in a mount while its processes die: `python -m tests.e2e.mixed_load …`.

Each runs until the file STOP appears, then prints one JSON line: how much it did, the longest that
one of its steps took, and every error that it saw. There must be none.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fs.mounting import git

_libc = ctypes.CDLL(None)
_IN_CREATE, _IN_DELETE = 0x100, 0x200


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
    """An open file, a current folder, a mapping, a lock and a watch go on."""
    content = (reference / "assets/logo.png").read_bytes()
    fd = os.open(mount / "assets/logo.png", os.O_RDONLY)
    mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    os.chdir(mount / "src")
    names = sorted(os.listdir(reference / "src"))
    chooser = random.Random(2)
    lock = os.open("watched-lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (mount / "watched").mkdir()
    watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    _libc.inotify_add_watch(watch, os.fsencode(mount / "watched"), _IN_CREATE | _IN_DELETE)

    def look_at_the_watch() -> None:
        (mount / "watched/new").touch()
        (mount / "watched/new").unlink()
        events = os.read(watch, 4096)
        masks = struct.unpack_from("iI", events)[1], struct.unpack_from("iI", events, 32)[1]
        check(masks == (_IN_CREATE, _IN_DELETE), f"the watch tells of {masks}")

    def try_the_lock() -> None:
        other = os.open("watched-lock", os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            os.close(other)
        raise AssertionError("the lock is gone")

    names = sorted([*names, "watched-lock"])

    def step() -> None:
        look_at_the_watch()
        try_the_lock()
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


def build(load: Load, mount: Path, reference: Path) -> None:
    """A program is compiled from sources of the tree, run, and removed again."""
    compiler = shutil.which("cc")
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        folder = mount / "built"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for part in range(5):
            (folder / f"part{part}.c").write_text(f"int part{part}(void) {{ return {part}; }}\n")
        calls = " + ".join(f"part{part}()" for part in range(5))
        declared = "".join(f"int part{part}(void);\n" for part in range(5))
        main = f"{declared}int main(void) {{ return {calls} + {number % 100}; }}\n"
        (folder / "main.c").write_text(main)
        shutil.copytree(reference / "src", folder / "src", symlinks=True)
        if compiler is not None:
            sources = [f"part{part}.c" for part in range(5)]
            command = [compiler, "-o", "program", "main.c", *sources]
            subprocess.run(command, cwd=folder, check=True, timeout=60)
            done = subprocess.run([folder / "program"], timeout=60)
            check(done.returncode == 10 + number % 100, f"the program says {done.returncode}")
        shutil.rmtree(folder)

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


KINDS = {"read": read, "stay": stay, "write": write, "build": build, "git": use_git}


def start(kind: str, stop: Path, mount: Path, reference: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.e2e.mixed_load", kind, stop, mount, reference]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    KINDS[sys.argv[1]](Load(Path(sys.argv[2])), Path(sys.argv[3]), Path(sys.argv[4]))
