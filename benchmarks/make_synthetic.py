"""Make a bare repository with a given number of small files, always the same.

20 files a directory, 10 directories in one above, and so on; sizes from 100 to 3,000 bytes of
text that compresses like source code. python benchmarks/make_synthetic.py 10000
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fast_import import EXECUTABLE, FILE, FastImport, run_git
from benchmarks.make_django_history import DEFAULT_CACHE

FILES_PER_DIRECTORY = 20
DIRECTORIES_PER_DIRECTORY = 10
LARGE_BYTES = 300 << 20
_WORDS = re.findall(
    r"\w+",
    "return self value index for in range length if not None else import from class def "
    "raise error name path size with open read write data blob tree commit parent entry",
)


def file_path(number: int) -> bytes:
    """Return the path of file `number`: shallow first, then nested by ten."""
    directory = number // FILES_PER_DIRECTORY
    parts = []
    while directory:
        directory -= 1
        parts.append(f"dir{directory % DIRECTORIES_PER_DIRECTORY}")
        directory //= DIRECTORIES_PER_DIRECTORY
    return "/".join([*reversed(parts), f"file{number}.py"]).encode()


def file_content(number: int, rng: random.Random) -> bytes:
    """Return 100 to 3,000 bytes of text, no two files the same."""
    words = rng.choices(_WORDS, k=rng.choice((20, 40, 80, 160, 400)))
    lines = [" ".join(words[at : at + 8]) for at in range(0, len(words), 8)]
    return f"# file {number}\n".encode() + "\n".join(lines).encode() + b"\n"


def make_files(target: Path, count: int) -> None:
    """Write the repository `target` with `count` files in one commit and two small ones after."""
    rng = random.Random(count)
    with FastImport(target) as stream:
        files = {}
        for number in range(count):
            mode = EXECUTABLE if number % 97 == 0 else FILE
            files[file_path(number)] = (mode, stream.blob(file_content(number, rng)))
        readme = stream.blob(b"# Synthetic repository\n\n%d files.\n" % count)
        files[b"README.md"] = (FILE, readme)
        stream.commit(f"Add {count} files\n", files)
        stream.tag("first")
        for edit in range(2):
            number = count // (edit + 2)
            content = file_content(number, rng) + b"# edited\n"
            stream.commit(
                f"Edit file {number}\n", {file_path(number): (FILE, stream.blob(content))}
            )
    run_git("-C", target, "repack", "-adq")


def synthetic_repository(count: int, cache: Path = DEFAULT_CACHE) -> Path:
    """Return the bare repository of `count` files, made if it is not in `cache` yet."""
    target = cache / f"synthetic-{count}.git"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".making")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_files(unfinished, count)
        unfinished.rename(target)
    return target


def lines_repository(count: int, cache: Path = DEFAULT_CACHE) -> Path:
    """Return the bare repository of `count` files of one line, all different, and a README: made in
    20 s where there are a million."""
    target = cache / f"lines-{count}.git"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".making")
        shutil.rmtree(unfinished, ignore_errors=True)
        with FastImport(unfinished) as stream:
            files = {b"README.md": (FILE, stream.blob(b"# %d lines\n" % count))}
            for number in range(count):
                files[file_path(number)] = (FILE, stream.blob(b"line = %d\n" % number))
            stream.commit(f"Add {count} files\n", files)
        run_git("-C", unfinished, "repack", "-adq")
        unfinished.rename(target)
    return target


SHAPES = ("flat", "deep", "refs", "commits")


def shaped_repository(shape: str, cache: Path = DEFAULT_CACHE) -> Path:
    """Return a bare repository that is large in one way: 10,000 files in one folder, 500 folders in
    each other, 50,000 branches, or 500,000 commits."""
    target = cache / f"shape-{shape}.git"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".making")
        shutil.rmtree(unfinished, ignore_errors=True)
        with FastImport(unfinished) as stream:
            files = {b"README.md": (FILE, stream.blob(b"# %s\n" % shape.encode()))}
            if shape == "flat":
                for number in range(10_000):
                    blob = stream.blob(b"line = %d\n" % number)
                    files[b"folder/file%d.py" % number] = (FILE, blob)
            if shape == "deep":
                files[b"d/" * 500 + b"file"] = (FILE, stream.blob(b"deep\n"))
            stream.commit("Add all\n", files)
            for number in range({"refs": 50_000, "commits": 500_000}.get(shape, 0)):
                if shape == "commits":
                    stream.commit(f"Commit {number}\n", {})
                else:
                    stream.branch(f"topic/{number % 100}/{number}")
        run_git("-C", unfinished, "repack", "-adq")
        run_git("-C", unfinished, "pack-refs", "--all")
        for name in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
            run_git("-C", unfinished, "config", name, "true")
        run_git("-C", unfinished, "config", "transfer.advertiseObjectInfo", "true")
        unfinished.rename(target)
    return target


def large_repository(cache: Path = DEFAULT_CACHE) -> Path:
    """Return the bare repository with one file of 300 MB that does not compress."""
    target = cache / "large.git"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".making")
        shutil.rmtree(unfinished, ignore_errors=True)
        rng = random.Random(300)
        with FastImport(unfinished) as stream:
            files = {b"README.md": (FILE, stream.blob(b"# One large file\n"))}
            for number in range(20):
                blob = stream.blob(file_content(number, rng))
                files[b"small/file%d.py" % number] = (FILE, blob)
            large = b"".join(rng.randbytes(1 << 20) for _ in range(LARGE_BYTES >> 20))
            files[b"large.bin"] = (FILE, stream.blob(large))
            stream.commit("Add a large file\n", files)
        unfinished.rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("count", nargs="+", type=int)
    options = parser.parse_args()
    for count in options.count:
        print(synthetic_repository(count, options.cache))


if __name__ == "__main__":
    main()
