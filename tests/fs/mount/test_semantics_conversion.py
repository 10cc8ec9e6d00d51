"""Files that git converts on checkout: rows of the table in ``docs/semantics.md``."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.converting import pair_of
from tests.fs.expectations import failing
from tests.fs.mounting import Mount, git

NewMount = Callable[..., Mount]


def test_converted_files(tmp_path: Path, new_mount: NewMount) -> None:
    files = {
        ".gitattributes": b"*.bat eol=crlf\n*.id ident\n*.rc working-tree-encoding=UTF-16\n",
        "a.bat": b"one\ntwo\n",
        "b.id": b"$Id$\n",
        "c.rc": "Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n".encode(),
        "d.txt": b"one\n",
    }
    pair = pair_of(files, tmp_path, new_mount)
    assert (pair.top / "a.bat").stat().st_size == 10
    pair.compare()
    git("read-tree", "HEAD", cwd=pair.top)
    assert git("status", "--porcelain", cwd=pair.top) == ""


def test_filtered_files(
    tmp_path: Path, new_mount: NewMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "global.config"))
    files = {
        ".gitattributes": b"*.up filter=up\n*.must filter=must\n*.lfs filter=lfs\n",
        "a.up": b"hello\n",
        "b.must": b"hello\n",
        "c.lfs": b"version https://git-lfs.github.com/spec/v1\n",
    }
    config = '[filter "up"]\n\tsmudge = tr a-z A-Z\n'
    late = '[filter "must"]\n\tsmudge = false\n\trequired = true\n'
    pair = pair_of(files, tmp_path, new_mount, config=config, late=late)
    assert (pair.top / "a.up").read_bytes() == b"HELLO\n"
    assert (pair.top / "c.lfs").read_bytes() == files["c.lfs"]
    with failing(errno.EIO):
        (pair.top / "b.must").read_bytes()


def test_converted_moves(tmp_path: Path, new_mount: NewMount) -> None:
    files = {".gitattributes": b"*.bat eol=crlf\n", "a.bat": b"one\n", "b.txt": b"one\n"}
    pair = pair_of(files, tmp_path, new_mount)
    (pair.top / "a.bat").rename(pair.top / "a.txt")
    os.link(pair.top / "b.txt", pair.top / "b.bat")
    assert (pair.top / "a.txt").read_bytes() == b"one\r\n"
    assert (pair.top / "b.bat").read_bytes() == b"one\n"


def test_converted_later(
    tmp_path: Path, new_mount: NewMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "global.config"))
    pair = pair_of({"a.txt": b"one\n", "b.txt": b"one\n"}, tmp_path, new_mount)
    assert (pair.top / "a.txt").read_bytes() == b"one\n"
    (tmp_path / "global.config").write_text("[core]\n\tautocrlf = true\n")
    (pair.top / ".gitattributes").write_text("*.txt eol=crlf\n")
    pair.mount.restart()
    assert (pair.top / "b.txt").read_bytes() == b"one\n"
    for command in ("read-tree HEAD", "rm -r --cached -q .", "reset -q --hard"):
        git(*command.split(), cwd=pair.top, GIT_CONFIG_GLOBAL=str(tmp_path / "global.config"))
    assert (pair.top / "b.txt").read_bytes() == b"one\r\n"
