"""A bare repository for the tests of hydration: many directories, every class of file."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fast_import import FILE, FastImport

PACKAGES = 8
MODULES = 6
FILES = 20


@dataclass(frozen=True)
class TreeRepository:
    """`contents` by path; `oids` by path. 8 times 6 directories of 20 modules, and some more."""

    path: Path
    contents: dict[bytes, bytes]
    oids: dict[bytes, bytes]


def _contents() -> dict[bytes, bytes]:
    rng = random.Random(7)
    files = {
        b".gitignore": b"*.pyc\n",
        b".gitattributes": b"* text=auto\n",
        b"package.json": b'{"name": "sample"}\n',
        b"README.md": b"# Sample\n" * 30,
        b"data/table.csv": b"1,2,3\n" * 4_000,
        b"data/large.bin": rng.randbytes(3_000_000),
        b"data/small.png": rng.randbytes(20_000),
        b"data/huge.py": b"x = %d\n" % 7 * 400_000,
        b"deep/a/b/c/d/leaf.txt": b"leaf\n",
    }
    for package in range(PACKAGES):
        for module in range(MODULES):
            for number in range(FILES):
                path = b"src/p%d/m%d/f%02d.py" % (package, module, number)
                words = b" ".join(b"w%d" % rng.randrange(9999) for _ in range(150))
                files[path] = b"# %s\n%s\n" % (path, words)
    return files


def make_tree_repository(path: Path) -> TreeRepository:
    """Make the bare repository `path`, which serves everything that protocol 2 offers."""
    contents = _contents()
    with FastImport(path) as stream:
        stream.commit("Start\n", {p: (FILE, stream.blob(data)) for p, data in contents.items()})
    for setting in (
        "uploadpack.allowFilter",
        "uploadpack.allowAnySHA1InWant",
        "transfer.advertiseObjectInfo",
    ):
        subprocess.run(["git", "-C", path, "config", setting, "true"], check=True)
    listing = subprocess.run(
        ["git", "-C", path, "ls-tree", "-rz", "main"], check=True, capture_output=True
    ).stdout
    oids = {}
    for line in listing.split(b"\0")[:-1]:
        description, _, name = line.partition(b"\t")
        oids[name] = bytes.fromhex(description.split()[2].decode())
    return TreeRepository(path, contents, oids)
