"""Writes side by side: the kernel's, those through our process, overlayfs alone, a folder of the
disk, a peer. As root: others may not mount overlayfs.

``scripts/benchmark --writes`` prints a table of milliseconds (the fastest of the runs) and each
one's ratio to the plain folder, a clone on the same disk as the state root. All contenders take
turns at each step, another one first each time: who is first finds programs and the disk's own maps
not in memory yet. Contents are all here before: what is measured is the writing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from artifactfs.fs.native.marks import MOUNT_OPTIONS
from benchmarks.contenders import Contender, Peer, PlainClone, Unhydrated, opened
from benchmarks.make_django_history import DEFAULT_CACHE, RELEASES, django_history

SMALL_BYTES = 2_000
LARGE_BYTES = 300 << 20
RANDOM_WRITES = 200
C_FILES = 60
NPM_PACKAGES = ("express@4",)


class KernelWrites(Unhydrated):
    name = "kernel writes"
    kind = "kernel"

    def open(self, url: str) -> Path:
        options = ("--hydrate", "none", "--writes", self.kind)
        return self.daemon.add_repo("bench", url, *options)


class FuseWrites(KernelWrites):
    name = "FUSE writes"
    kind = "fuse"


class Folder(PlainClone):
    name = "plain folder"

    def settle(self) -> None:
        return


class BareOverlay(Folder):
    """The kernel's overlayfs alone, above such a clone: what of the first column is its own."""

    name = "overlayfs alone"

    def open(self, url: str) -> Path:
        lower = super().open(url)
        merged, upper, work = (self.directory / name for name in ("merged", "upper", "work"))
        for folder in (merged, upper, work):
            folder.mkdir()
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        options = f"{layers},{MOUNT_OPTIONS}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
        return merged

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.directory / "merged"], check=True)
        super().close()


def make_tar(path: Path, count: int) -> Path:
    """A tar file of `count` small files in folders of fifty."""
    source = path.with_suffix("")
    for number in range(count):
        file = source / f"folder{number // 50}" / f"file{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(SMALL_BYTES // 2) + b"x" * (SMALL_BYTES // 2))
    subprocess.run(["tar", "cf", path, "-C", source.parent, source.name], check=True)
    return path


def make_c_project(path: Path) -> Path:
    path.mkdir()
    names = [f"unit{number}" for number in range(C_FILES)]
    for name in names:
        body = "\n".join(f"int {name}_{i}(int x) {{ return x * {i} + 1; }}" for i in range(100))
        (path / f"{name}.c").write_text(f"#include <stdio.h>\n{body}\n")
    (path / "main.c").write_text("int main(void) { return 0; }\n")
    objects = " ".join(f"{name}.o" for name in [*names, "main"])
    (path / "Makefile").write_text(f"program: {objects}\n\t$(CC) -o $@ {objects}\n")
    return path


Step = tuple[str, Callable[[Path], None]]


def shell(command: str, **variables: object) -> Callable[[Path], None]:
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment["GIT_CONFIG_GLOBAL"] = os.devnull

    def run(tree: Path) -> None:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=tree, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr[-500:]}")

    return run


def write_in_pieces(size: int, piece: int) -> Callable[[Path], None]:
    def run(tree: Path) -> None:
        data = os.urandom(piece)
        with (tree / f"pieces{piece}").open("wb", buffering=0) as file:
            for _ in range(size // piece):
                file.write(data)

    return run


def write_at_random(tree: Path) -> None:
    """4 KB at each of many places, synced each time."""
    descriptor = os.open(tree / "pieces4096", os.O_RDWR)
    data = os.urandom(4096)
    for number in range(RANDOM_WRITES):
        os.pwrite(descriptor, data, (number * 7919 % 2560) * 4096)
        os.fsync(descriptor)
    os.close(descriptor)


def steps(scratch: Path, *, npm: bool) -> Iterator[Step]:
    """In order: later ones use what earlier ones wrote."""
    for count in (500, 6_000):
        tar = make_tar(scratch / f"small{count}.tar", count)
        yield f"tar x of {count:,} files", shell("tar xf $TAR", TAR=tar)
    yield "cp -a of 6,000 files", shell("cp -a small6000 copy")
    yield "rm -r of 6,000 files", shell("rm -r copy")
    yield "300 MB by 1 MB", write_in_pieces(LARGE_BYTES, 1 << 20)
    yield "read them again", shell("cat pieces1048576 > /dev/null")
    yield "10 MB by 4 KB", write_in_pieces(10 << 20, 4096)
    yield f"{RANDOM_WRITES} random 4 KB writes with fsync", write_at_random
    project = make_c_project(scratch / "project")
    yield f"build of {C_FILES} C files", shell("cp -r $C built; make -s -C built -j2", C=project)
    if npm and shutil.which("npm"):
        cache = scratch / "npm"
        packages = " ".join(NPM_PACKAGES)
        command = f"npm install --silent --no-audit --no-fund --prefer-offline --cache {cache}"
        package = "mkdir web; cd web; echo '{}' > package.json"  # else npm looks above
        prepared = scratch / "prepared"
        prepared.mkdir()
        shell(f"{command} {packages}")(prepared)
        yield f"npm install {packages}", shell(f"{package}; {command} {packages}")
    yield "git status, first", shell("git status --porcelain > /dev/null")
    yield "git status, next", shell("git status --porcelain > /dev/null")
    remove = "rm -rf small500 small6000 pieces* built web"
    yield "rm -r of all that", shell(remove)
    other, first = RELEASES[-2], RELEASES[-1]
    yield f"git checkout {other}", shell(f"git checkout -q {other}")
    yield f"git checkout {first}", shell(f"git checkout -q {first}")
    yield "git status after it", shell("git status --porcelain > /dev/null")
    yield "find", shell("find . -path ./.git -prune -o -print > /dev/null")
    yield "ls -lR", shell("ls -lR > /dev/null")
    yield "grep -r", shell("grep -r --exclude-dir=.git no-such-word-here . || true")


def measure(step: Callable[[Path], None], tree: Path) -> float:
    os.sync()
    started = time.perf_counter()
    step(tree)
    return (time.perf_counter() - started) * 1000


def everything_here(contender: Contender, tree: Path) -> None:
    """Contents of both releases; and what the steps read is in the page cache."""
    contender.settle()
    contender.hydrate()
    other, first = RELEASES[-2], RELEASES[-1]
    shell(f"git checkout -q {other}; git checkout -q {first}; git status > /dev/null")(tree)
    shell("find . -path ./.git -prune -o -type f -print0 | xargs -0 cat > /dev/null")(tree)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/benchmark --writes", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path, metavar="PATH", help="another implementation")
    parser.add_argument("--npm", action="store_true", help="also npm install (asks its registry)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    options = parser.parse_args()
    kinds: list[type[Contender]] = [KernelWrites, FuseWrites, BareOverlay, Folder]
    if options.peer is not None:
        Peer.program = options.peer
        kinds.append(Peer)
    url = django_history(options.cache).as_uri()
    found: dict[str, dict[str, float]] = {}
    scratch = Path(tempfile.mkdtemp(prefix="afs-writes-", dir="/tmp"))
    try:
        prepared = list(steps(scratch, npm=options.npm))
        for run in range(options.runs):
            with ExitStack() as stack:
                trees = []
                for kind in kinds:
                    contender = stack.enter_context(opened(kind, scratch / f"{kind.__name__}{run}"))
                    tree = contender.open(url)
                    everything_here(contender, tree)
                    trees.append((contender.name, tree))
                for number, (name, step) in enumerate(prepared):
                    first = (number + run) % len(trees)
                    for who, tree in trees[first:] + trees[:first]:
                        milliseconds = measure(step, tree)
                        known = found.setdefault(name, {})
                        known[who] = min(milliseconds, known.get(who, milliseconds))
            print_table(found, [kind.name for kind in kinds])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


def print_table(found: dict[str, dict[str, float]], names: list[str]) -> None:
    print(f"\n| ms | {' | '.join(names)} | ratios to the folder |")
    print("|---" * (len(names) + 2) + "|")
    for step, times in found.items():
        row = " | ".join(f"{times[name]:,.0f}" for name in names)
        base = times[Folder.name]
        ratios = ", ".join(f"{times[name] / base:.1f}" for name in names if name != Folder.name)
        print(f"| {step} | {row} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
