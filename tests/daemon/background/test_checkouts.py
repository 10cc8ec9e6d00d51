"""Which commands write the whole tree of another commit."""

from __future__ import annotations

import pytest

from artifactfs.daemon.background.checkouts import target_of
from artifactfs.fs.gitview.callers import GitCommand


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("checkout -q HEAD~200", "HEAD~200"),
        ("checkout -f -b new v1.0", "v1.0"),
        ("checkout -", "-"),
        ("switch --detach v1.0", "v1.0"),
        ("switch -c new origin/next", "origin/next"),
        ("reset --hard HEAD~3", "HEAD~3"),
        ("checkout -q 1234abcd --", "1234abcd"),  # as git bisect has it
        ("merge -m message origin/next", "origin/next"),
        ("rebase main", "main"),
        ("checkout -b new", None),
        ("checkout HEAD~3 README.md", None),
        ("checkout HEAD~3 -- README.md", None),
        ("checkout", None),
        ("reset HEAD~3", None),
        ("reset --soft HEAD~3", None),
        ("log HEAD~3", None),
        ("merge --abort", None),
        ("merge one two", None),
        ("rebase --continue", None),
    ],
)
def test_the_commit_that_is_written(line: str, target: str | None) -> None:
    name, *arguments = line.split()
    assert target_of(GitCommand(1, name, tuple(arguments))) == target
