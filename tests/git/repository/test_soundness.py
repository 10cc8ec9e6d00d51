"""What is said of a damaged gitdir, without git: it must be what git itself would say."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from artifactfs.git.repository.soundness import malformed_line

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
