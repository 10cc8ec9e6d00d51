"""Attributes and patterns, compared with what ``git check-attr`` says."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from artifactfs.git.checkout.attributes import Attributes, Source, Value, parse

NAMES = [b"text", b"eol", b"crlf", b"ident", b"filter", b"working-tree-encoding"]
DIRECTORIES = [b"", b"a", b"a/b", b"a/b/c", b"src", b"src/x y"]
FILE_NAMES = [b"f.txt", b"f.bat", b"a", b"b.c", b"[x]", b"x-y", b".gitignore", b"foo.tar.gz"]
FILE_NAMES += ["é.txt".encode(), b"back\\slash", b"a]b", b"t\tab"]
FILES = [
    (directory + b"/" if directory else b"") + name
    for directory in DIRECTORIES
    for name in FILE_NAMES
]
PATTERN_PARTS = (
    rb"* ** ? / / a b f . .txt *.txt [a-f] [!a] [^x] []] [[:alpha:]] [x- \ \* src x y **/ /** c"
    rb" [a-] [\]] [[:bogus:]] [z-a]"
).split()
STATES = (
    b"text -text !text text=auto eol=crlf eol=lf -eol crlf -crlf crlf=input ident -ident !ident"
    b" filter=x filter -filter binary -binary !binary mac -mac working-tree-encoding=UTF-16 diff"
    b" -foo=bar mac2 filter="
).split()


def random_pattern(rng: random.Random) -> bytes:
    pattern = b"".join(rng.choice(PATTERN_PARTS) for _ in range(rng.randint(1, 5)))
    if rng.random() < 0.1:
        return b'"' + pattern.replace(b"\\", b"\\\\") + b'"'
    return pattern


def random_file(rng: random.Random) -> bytes:
    lines = []
    for _ in range(rng.randint(0, 7)):
        states = b" ".join(rng.choices(STATES, k=rng.randint(1, 3)))
        kind = rng.random()
        if kind < 0.15:
            lines.append(b"[attr]" + rng.choice([b"mac", b"mac2", b"binary"]) + b" " + states)
        elif kind < 0.2:
            lines.append(rng.choice([b"# comment", b"*.txt text bad,name", b"!*.txt text", b""]))
        else:
            space, end = rng.choice([b" ", b"\t"]), rng.choice([b"", b"\r", b" "])
            lines.append(rng.choice([b"", b"  "]) + random_pattern(rng) + space + states + end)
    return b"\n".join(lines) + b"\n"


def of_git(top: Path) -> dict[bytes, dict[bytes, bytes]]:
    command = ["git", "-C", top, "check-attr", "-z", "--stdin", *map(os.fsdecode, NAMES)]
    paths = b"".join(path + b"\0" for path in FILES)
    out = subprocess.run(command, input=paths, capture_output=True, check=True).stdout
    words = out.split(b"\0")
    found: dict[bytes, dict[bytes, bytes]] = {}
    for path, name, value in zip(words[::3], words[1::3], words[2::3], strict=False):
        found.setdefault(path, {})[name] = value
    return found


def shown(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    return {None: b"unspecified", True: b"set", False: b"unset"}[value]


def sources_of(path: bytes, files: dict[bytes, bytes], info: bytes) -> list[Source]:
    found = [
        Source(place, parse(files[place], macros=not place, is_file=True))
        for place in DIRECTORIES
        if place in files and (not place or path.startswith(place + b"/"))
    ]
    return [*found, Source(b"", parse(info, macros=True, is_file=True))]


@pytest.mark.parametrize("seed", range(40))
def test_what_git_says(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    files: dict[bytes, bytes] = {}
    for place in DIRECTORIES:
        directory = tmp_path / os.fsdecode(place)
        directory.mkdir(exist_ok=True)
        if not place or rng.random() < 0.6:
            files[place] = random_file(rng)
            (directory / ".gitattributes").write_bytes(files[place])
    info = random_file(rng) if rng.random() < 0.4 else b""
    (tmp_path / ".git/info").mkdir(exist_ok=True)
    (tmp_path / ".git/info/attributes").write_bytes(info)
    expected = of_git(tmp_path)
    for path in FILES:
        said = Attributes(sources_of(path, files, info), NAMES).lookup(path)
        ours = {name: shown(said.get(name)) for name in NAMES}
        assert ours == expected[path], (path, files, info)


def test_lines_that_git_ignores() -> None:
    content = b"\xef\xbb\xbf*.a text\n" + b"*.b " + b"x" * 2048 + b"\n*.c text\n\0*.d text\n"
    assert [line.pattern for line in parse(content, macros=True, is_file=True)] == [b"*.a", b"*.c"]
    assert parse(content, macros=True)[0].pattern == b"\xef\xbb\xbf*.a"
    assert parse(b"[attr]x text\n", macros=False) == ()


def test_whether_a_path_matters() -> None:
    def by_path(content: bytes) -> bool:
        return Attributes([Source(b"", parse(content, macros=True))], NAMES).by_path

    assert not by_path(b"*.bat eol=crlf\n/docs/*.md diff\n")
    assert by_path(b"/docs/*.md text\n")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (b"*a" * 40 + b"*b", b"a" * 250),
        (b"x/" + b"*a" * 40 + b"*b/y", b"x/" + b"a" * 250),
        (b"**/*a*a/" * 20 + b"b", b"aaa/" * 300),
    ],
)
def test_no_pattern_takes_forever(pattern: bytes, path: bytes) -> None:
    lines = parse(pattern + b" text\n", macros=True)
    assert lines
    assert not Attributes([Source(b"", lines)], (b"text",)).lookup(path)
