"""A small repository with everything a tree can hold that programs tend to get wrong."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fast_import import EXECUTABLE, FILE, GITLINK, SYMLINK, FastImport, run_git

COMMITS = 60
BIG_SIZE = 3 << 20
"""Bytes of `assets/big.bin`; they do not compress."""

SUBMODULE_COMMIT = b"c0ffee" + b"0" * 34


@dataclass(slots=True)
class OddRepository:
    """The bare repository at `path` with the branches main and topic and the tag v1."""

    path: Path
    commits: int = 0
    files: dict[bytes, bytes] = field(default_factory=dict)
    """Path → content of every regular file at the tip of main."""

    def oid(self, path: str) -> str:
        """Return the object id (hex) of `path` at the tip of main."""
        return run_git("-C", self.path, "rev-parse", f"main:{path}").strip()

    def blobs(self, tree: str = "main") -> dict[str, str]:
        """Return path → object id (hex) of every blob of `tree`."""
        listing = run_git("-C", self.path, "ls-tree", "-r", "-z", tree)
        found = re.findall(r"\d+ blob ([0-9a-f]{40})\t([^\0]*)\0", listing)
        return {path: oid for oid, path in found}


def odd_files(rng: random.Random) -> dict[bytes, tuple[bytes, bytes]]:
    """Return path → (mode, content)."""
    files: dict[bytes, tuple[bytes, bytes]] = {
        b"README.md": (FILE, b"# Odd\n\nA tree with odd things in it.\n"),
        b"LICENSE": (FILE, b"Do as you like.\n" * 40),
        b"package.json": (FILE, b'{"name": "odd", "version": "1.0.0"}\n'),
        b"package-lock.json": (FILE, b'{"lockfileVersion": 3}\n' * 50),
        b"pyproject.toml": (FILE, b'[project]\nname = "odd"\n'),
        b".gitignore": (FILE, b"*.o\n/build/\n"),
        b".gitattributes": (FILE, b"*.bat text\n"),
        b".gitmodules": (
            FILE,
            b'[submodule "vendor/sub"]\n\tpath = vendor/sub\n\turl = ../sub.git\n',
        ),
        b"Makefile": (FILE, b"all: src/hello\n\nsrc/hello: src/hello.c\n\t$(CC) -o $@ $<\n"),
        b"run.sh": (EXECUTABLE, b"#!/bin/sh\necho it runs\n"),
        b"script.bat": (FILE, b"@echo off\n"),
        b"empty": (FILE, b""),
        b"link": (SYMLINK, b"README.md"),
        b"dangling": (SYMLINK, b"no/such/file"),
        b"dirlink": (SYMLINK, b"src"),
        b"absolute": (SYMLINK, b"/etc/hostname"),
        b"src/hello.c": (FILE, b'#include <stdio.h>\nint main(void) { puts("hello"); }\n'),
        b"src/tool": (EXECUTABLE, b'#!/bin/sh\nexec cat "$0"\n'),
        b"assets/big.bin": (FILE, rng.randbytes(BIG_SIZE)),
        b"assets/logo.png": (FILE, b"\x89PNG\r\n\x1a\n" + rng.randbytes(40_000)),
        b"names/with space": (FILE, b"space\n"),
        b"names/tab\tand\nnewline": (FILE, b"control characters\n"),
        b"names/\xff\xfe not utf-8 \xe9": (FILE, b"latin\n"),
        "names/žluťoučký kůň ☃".encode(): (FILE, b"utf-8\n"),
        b'names/quo"te\\back': (FILE, b"quotes\n"),
        b"names/-dash": (FILE, b"dash\n"),
        b"names/" + b"n" * 255: (FILE, b"255 bytes\n"),
        b"names/" + "é".encode() * 127 + b"x": (FILE, b"255 bytes of utf-8\n"),
        b"deep/" + b"/".join(b"level%d" % n for n in range(40)) + b"/bottom": (FILE, b"deep\n"),
        b"case/File": (FILE, b"upper\n"),
        b"case/file": (FILE, b"lower\n"),
        b"page/exact": (FILE, b"p" * 4096),
        b"page/more": (FILE, b"p" * 4097),
        b"page/less": (FILE, b"p" * 4095),
        b"page/no newline": (FILE, b"end"),
        b"page/crlf": (FILE, b"one\r\ntwo\r\n"),
        b"page/zeros": (FILE, bytes(70_000)),
    }
    for number in range(200):
        text = b"".join(b"value_%d = %d\n" % (n, rng.getrandbits(32)) for n in range(number % 60))
        files[b"src/package%d/module%d.py" % (number % 10, number)] = (FILE, text)
    for number in range(120):
        files[b"many/%03d.txt" % number] = (FILE, b"file %d\n" % number)
    return files


def make_odd_repository(path: Path) -> OddRepository:
    """Make the repository at `path`: `COMMITS` commits on main, one more on topic."""
    rng = random.Random(7)
    repository = OddRepository(path)
    files = odd_files(rng)
    with FastImport(path) as stream:
        marked = {name: (mode, stream.blob(data)) for name, (mode, data) in files.items()}
        marked[b"vendor/sub"] = (GITLINK, SUBMODULE_COMMIT)
        stream.commit("Start\n", marked)
        stream.tag("v1")
        for number in range(1, COMMITS):
            name = b"src/package%d/module%d.py" % (number % 10, number)
            data = files[name][1] + b"# edit %d\n" % number
            files[name] = (FILE, data)
            stream.commit(f"Edit module {number}\n", {name: (FILE, stream.blob(data))})
        repository.commits = stream.commits
    run_git("-C", path, "branch", "topic", "main~20")
    repository.files = {name: data for name, (mode, data) in files.items() if mode != SYMLINK}
    return repository
