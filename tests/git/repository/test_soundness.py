"""What is said of a damaged gitdir: where git itself says something, the same."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.errors import CorruptData
from artifactfs.git.repository.gitdir import read_shallow
from artifactfs.git.repository.soundness import drop_damaged_derived, faults, malformed_line
from tests.git.sample_repository import Sample, git

CONFIG = rb"""# written by hand
[core]
	repositoryformatversion = 1 ; and extensions
	bare = false
	worktree = "/mnt/a b"
	fsmonitor = "/usr/bin/python3 \"x\" \\ y"
[remote "origin"]
	url = http://127.0.0.1:800/x.git
	fetch = +refs/heads/*:refs/remotes/origin/*
	promisor
[alias]
	x = "a \
b" c
[include]
	path = artifactfs/config
[section.sub]
 a=b
[branch "ma\"in"] merge = refs/heads/main
"""


def damaged(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    match chance.randrange(3):
        case 0:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case 1:
            del changed[chance.randrange(len(changed)) :]
        case 2:
            for _ in range(3):
                changed[chance.randrange(len(changed))] = chance.choice(b'"\\\n[]=#; a\t\r-.\v')
    return bytes(changed)


def test_a_configuration_is_damaged_where_git_says_so(tmp_path: Path) -> None:
    chance, refused = random.Random(1), 0
    for _ in range(150):
        content = damaged(CONFIG, chance).replace(b"\0", b"")
        path = tmp_path / "config"
        path.write_bytes(content)
        done = subprocess.run(
            ["git", "config", "--file", path, "--list"], capture_output=True, check=False
        )
        line = malformed_line(content)
        assert (line is not None) == (done.returncode != 0), (content, done.stderr)
        refused += line is not None
    assert refused > 30


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (CONFIG, None),
        (b"", None),
        (bytes(300), 1),
        (CONFIG[:60] + bytes(40), 3),
        (b"[core]\r\n\tbare = true\r\n", None),
        (b"\xef\xbb\xbf[core]\n\tbare\n", None),
        (b'[core]\n\n\tbare = "\n', 3),
    ],
)
def test_the_line_is_named(content: bytes, line: int | None) -> None:
    assert malformed_line(content) == line


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.chmod(0o644)
    path.write_bytes(content)


WAYS: dict[str, Callable[[Path], None]] = {
    "one bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
}
DERIVED = {
    "info/commit-graph": ("commit-graph", "write", "--reachable"),
    "info/commit-graphs/graph-*.graph": ("commit-graph", "write", "--reachable", "--split"),
    "pack/multi-pack-index": ("multi-pack-index", "write"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", DERIVED)
def test_what_git_has_made_to_be_faster_is_removed_where_it_is_damaged(
    hosted: Sample, pattern: str, way: str
) -> None:
    gitdir = hosted.bare
    git("repack", "-qad", cwd=gitdir)
    history = git("log", "--format=%H %P", "--all", cwd=gitdir)
    git(*DERIVED[pattern], cwd=gitdir)
    assert drop_damaged_derived(gitdir) == []
    (path,) = (gitdir / "objects").glob(pattern)
    path.chmod(0o644)
    WAYS[way](path)
    assert path in {fault.path for fault in faults(gitdir)}
    assert [fault.path for fault in drop_damaged_derived(gitdir)] == [path]
    assert not path.exists()
    assert git("log", "--format=%H %P", "--all", cwd=gitdir) == history
    git("fsck", cwd=gitdir)


@pytest.mark.parametrize("content", [b"garbage\n", bytes(41), b"12ab\n", b"\xff" * 40 + b"\n"])
def test_a_damaged_list_of_shallow_commits_is_named(hosted: Sample, content: bytes) -> None:
    shallow = hosted.bare / "shallow"
    tip = git("rev-parse", "HEAD", cwd=hosted.bare).strip()
    shallow.write_text(f"{tip}\n")
    assert read_shallow(hosted.bare) == {bytes.fromhex(tip)}
    assert shallow not in {fault.path for fault in faults(hosted.bare)}
    shallow.write_bytes(content)
    assert shallow in {fault.path for fault in faults(hosted.bare)}
    with pytest.raises(CorruptData, match="shallow is damaged"):
        read_shallow(hosted.bare)
