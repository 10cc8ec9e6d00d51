"""What commits were made here, and which come before others, with and without all of history."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifactfs.git.objects.ancestry import is_ancestor, made_here
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from tests.git.sample_repository import git


class History:
    """A repository whose commits are made by hand, with times that lie if need be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        git("init", "-q", "--bare", str(path), cwd=path.parent)
        self.tree = git("hash-object", "-w", "-t", "tree", "/dev/null", cwd=path)
        self._count = 0

    def commit(self, *parents: bytes, time: int | None = None) -> bytes:
        self._count += 1
        seconds = 1_700_000_000 + (self._count if time is None else time) * 86_400
        given = [word for parent in parents for word in ("-p", parent.hex())]
        date = {"GIT_COMMITTER_DATE": f"{seconds} +0000"}
        words = ("commit-tree", self.tree, "-m", str(self._count), *given)
        return bytes.fromhex(git(*words, cwd=self.path, **date))

    def lose(self, oid: bytes) -> None:
        name = oid.hex()
        (self.path / "objects" / name[:2] / name[2:]).unlink()

    @property
    def odb(self) -> ObjectDatabase:
        return ObjectDatabase(self.path)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "h.git")


def test_ancestors(history: History) -> None:
    root = history.commit()
    middle = history.commit(root)
    side = history.commit(root, time=30)
    tip = history.commit(middle, side, time=1)  # a clock that is a month behind
    assert is_ancestor(history.odb, middle, tip) and is_ancestor(history.odb, tip, tip)
    assert not is_ancestor(history.odb, side, middle)
    other = history.commit(tip)
    history.lose(middle)
    history.lose(side)
    assert is_ancestor(history.odb, tip, other)
    with pytest.raises(MissingObject):
        is_ancestor(history.odb, root, other)


def test_made_here(history: History) -> None:
    root = history.commit()
    pushed = history.commit(root)
    theirs = history.commit(pushed)
    mine = history.commit(pushed)
    merge = history.commit(mine, theirs)
    nobody = lambda oid: False  # noqa: E731 - nothing is promised
    for ours, expected in (
        ([pushed, root], set()),
        ([theirs], set()),
        ([merge], {mine, merge}),
        ([history.commit()], None),
    ):
        found = made_here(history.odb, ours, [theirs], nobody)
        assert found == (set(ours) if expected is None else expected)
    assert made_here(history.odb, [merge], [], nobody) == {root, pushed, theirs, mine, merge}


def test_made_here_without_history(history: History) -> None:
    """Parents and most tips are promised: only what came from the remote is not counted."""
    root = history.commit()
    old = history.commit(root)
    tip = history.commit(old)
    mine = history.commit(old)
    history.lose(root)
    history.lose(tip)
    promised = {old, tip}.__contains__
    assert made_here(history.odb, [mine, old], [tip], promised) == {mine}
    tag = git("mktag", "--no-strict", cwd=history.path, stdin=_tag_of(history.tree))
    assert made_here(history.odb, [mine], [bytes.fromhex(tag)], promised) == {mine}
    with pytest.raises(MissingObject):
        made_here(history.odb, [tip], [], promised)


def _tag_of(tree: str) -> str:
    return f"object {tree}\ntype tree\ntag t\ntagger A <a@b> 1 +0000\n\nx\n"


def test_made_in_the_same_second(history: History) -> None:
    """What was pushed may be a child that is no younger than its parent, as a snapshot is."""
    nobody = lambda oid: False  # noqa: E731 - nothing is promised
    root = history.commit(time=1)
    for _ in range(8):  # the order of oids decides which is looked at first
        mine = history.commit(root, time=2)
        pushed = history.commit(mine, time=2)
        assert made_here(history.odb, [mine], [root, pushed], nobody) == set()
