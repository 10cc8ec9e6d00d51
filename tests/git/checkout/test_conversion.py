"""Conversions on checkout: bytes are compared with what a plain ``git clone`` writes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from artifactfs.errors import CorruptData
from artifactfs.git.checkout.attributes import Source, parse
from artifactfs.git.checkout.conversion import (
    CONFIG_KEYS,
    Conversion,
    ConversionSettings,
    Converter,
    TreeConversions,
)
from artifactfs.git.checkout.smudge import to_worktree

ATTRIBUTES = b"""\
*.bat text eol=crlf
*.auto text=auto eol=crlf
*.id ident
*.idc ident text eol=crlf
*.ida ident text=auto eol=crlf
*.u16 working-tree-encoding=UTF-16
*.u16l text working-tree-encoding=UTF-16LE-BOM eol=crlf
*.u16b working-tree-encoding=utf16BE-BOM
*.u32 working-tree-encoding=UTF-32
*.u8 working-tree-encoding=utf8
*.lat working-tree-encoding=ISO-8859-1 ident
*.jp working-tree-encoding=SHIFT-JIS
*.state working-tree-encoding=ISO-2022-JP
*.no working-tree-encoding=nonsense
*.t text
*.old crlf
*.a text=auto
*.bin binary
"""
SUFFIXES = [line.split()[0][1:] for line in ATTRIBUTES.splitlines()] + [b".plain"]
PARTS = [b"$", b"$Id$", b"$Id", b"$Id: ", b"Id:", b"I", b"d", b":", b" ", b"\n", b"\n", b"\r\n"]
PARTS += [b"\r", b"text", b"$Id: abc $", b"$Id:x$", b"$Id: a b $", b"$Id: a.b,v 1 $", b"$$"]
PARTS += [b"\t", b"\x1a", b"a long line of text " * 10]
ODD_PARTS = [b"\0", b"\x01", b"\x7f", "é".encode(), "☃".encode(), b"\xff"]
CONTENTS = [
    b"",
    "日本語\nabc\n漢字".encode(),
    b"x" * 200 + b"\n\x01",
    b"x" * 200 + b"\n\x01\x02",
    b"x" * 20 + b"\n\x1a",
]


def contents(rng: random.Random) -> dict[bytes, bytes]:
    found = {b".gitattributes": ATTRIBUTES}
    for number in range(40):
        parts = PARTS + (ODD_PARTS if number % 3 == 0 else [])
        content = b"".join(rng.choice(parts) for _ in range(rng.randint(0, 60)))
        content = CONTENTS[number] if number < len(CONTENTS) else content
        found |= {b"f%d%b" % (number, suffix): content for suffix in SUFFIXES}
    return found


def commit(files: dict[bytes, bytes], gitdir: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", gitdir], check=True)
    stream = [b"commit refs/heads/main\ncommitter a <a> 1 +0000\ndata 0\n"]
    for path, content in files.items():
        stream.append(b"M 100644 inline %b\ndata %d\n%b\n" % (path, len(content), content))
    command = ["git", "-C", gitdir, "fast-import", "--quiet"]
    subprocess.run(command, input=b"".join(stream), check=True)


@pytest.mark.parametrize(
    "config", ["", "core.autocrlf=true", "core.autocrlf=input", "core.eol=crlf"]
)
def test_bytes_are_those_of_a_clone(config: str, tmp_path: Path) -> None:
    files = contents(random.Random(config))
    commit(files, tmp_path / "origin")
    git = ["git", *(("-c", config) if config else ())]
    command = [*git, "clone", "-q", tmp_path / "origin", tmp_path / "clone"]
    subprocess.run(command, check=True, capture_output=True)
    printed = subprocess.run(
        [*git, "config", "-z", "--get-regexp", CONFIG_KEYS], capture_output=True
    ).stdout
    settings = ConversionSettings.read(printed, tmp_path / "clone/.git")
    converter = Converter(settings, [Source(b"", parse(ATTRIBUTES, macros=True))])
    converted = 0
    for path, content in files.items():
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).digest()
        conversion = converter.conversion(path)
        ours = content if conversion is None else to_worktree(content, oid, conversion)
        assert ours == (tmp_path / "clone" / os.fsdecode(path)).read_bytes(), (path, content)
        converted += ours != content
    assert converted > 200


def test_settings_are_read_from_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"[core]\n\tautocrlf\n\teol = CRLF\n\tattributesFile = {tmp_path}/global\n"
        '[filter "Rot 13.x"]\n\tsmudge = tr\n[filter "clean"]\n\tclean = tr\n'
        '[filter "off"]\n\tsmudge =\n[filter "p"]\n\tprocess = p\n'
    )
    (tmp_path / "global").write_bytes(b"\xef\xbb\xbf*.x text\n*.\xff ident\n")
    (tmp_path / "info").mkdir()
    (tmp_path / "info/attributes").write_text("*.x -text\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    printed = subprocess.run(
        ["git", "config", "-z", "--get-regexp", CONFIG_KEYS], capture_output=True, cwd=tmp_path
    ).stdout
    settings = ConversionSettings.read(printed, tmp_path)
    assert (settings.autocrlf, settings.eol) == ("true", "crlf")
    assert settings.filters == ("Rot 13.x", "p")
    assert settings.cleans == ("clean", "p")
    assert ConversionSettings.from_json(settings.to_json()) == settings
    converter = Converter(settings, [])
    assert converter.conversion(b"a.x") is None
    assert converter.conversion(b"a.\xff") == Conversion(eol="auto", ident=True)
    with pytest.raises(CorruptData):
        ConversionSettings.from_json("{}")


@pytest.mark.parametrize(
    ("attributes", "converts"),
    [
        ("", False),
        ("* text=auto\n*.png binary\n*.c diff=cpp\n*.sh eol=lf\n", False),
        ("*.psd filter=lfs diff=lfs merge=lfs -text\n", False),
        ("*.x filter=known\n", True),
        ("*.bat eol=crlf\n", True),
        ("[attr]dos text eol=crlf\n*.bat dos\n", True),
        ("*.bat dos\n", False),
        ("*.c ident\n", True),
        ("*.c -ident\n", False),
        ("*.rc working-tree-encoding=UTF-16\n", True),
        ("*.rc working-tree-encoding=UTF8\n", False),
    ],
)
def test_whether_anything_converts(attributes: str, converts: bool) -> None:
    lines = parse(attributes.encode(), macros=True)
    converter = Converter(ConversionSettings(filters=("known",)), [Source(b"", lines)])
    assert converter.can_convert() == converts


@pytest.mark.parametrize(
    ("attributes", "autocrlf", "converted"),
    [
        ("", "false", False),
        ("", "true", True),
        ("* text=auto\n", "false", True),
        ("*.c text\n", "false", False),
        ("# comment\n\n.git* text eol=lf\n", "false", True),
        ("* -text\n", "true", False),
        ("* text=auto\n.gitignore binary\n", "false", False),
        ("* text=auto\n* !text\n", "false", False),
        ("/sub/.gitignore ident\n", "false", True),
        ("**/.gitignore filter=x\n", "false", True),
        ("**/.gitignore filter=y\n", "false", False),
    ],
)
def test_what_is_converted_to_git(attributes: str, autocrlf: str, converted: bool) -> None:
    settings = ConversionSettings(autocrlf=autocrlf, cleans=("x",))
    converter = Converter(settings, [Source(b"", parse(attributes.encode(), macros=True))])
    assert converter.converts_to_git(b"sub/.gitignore") == converted


def test_attribute_files_that_are_not_here() -> None:
    files = {b"": b"*.bat eol=crlf\n", b"a/b": None, b"c": b"*.bat -text\n"}
    tree = TreeConversions(ConversionSettings(), files)
    assert tree.shows_blob(b"x.c") and tree.shows_blob(b"a/x.c") and tree.shows_blob(b"c/d/x.bat")
    assert not tree.shows_blob(b"x.bat") and not tree.shows_blob(b"a/b/c/x.c")
