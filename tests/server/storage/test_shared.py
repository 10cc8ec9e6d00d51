"""A file system that several servers cannot share is refused, and says why."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifactfs.errors import StateError
from artifactfs.server.cluster.fence import write_hook
from artifactfs.server.storage import shared
from artifactfs.server.storage.gitdir import GIT_CONFIG, write_git_config
from artifactfs.server.storage.settings import DataLayout
from artifactfs.server.storage.shared import check_shared


@pytest.fixture
def layout(tmp_path: Path) -> DataLayout:
    made = DataLayout(tmp_path / "data")
    made.prepare()
    return made


def test_a_good_one(layout: DataLayout) -> None:
    check_shared(layout)
    assert list(layout.trash.iterdir()) == []


def refused(layout: DataLayout) -> str:
    with pytest.raises(StateError) as caught:
        check_shared(layout)
    assert caught.value.hint is not None and "server-cluster" in caught.value.hint
    assert list(layout.trash.iterdir()) == []
    return caught.value.message


def test_without_hard_links(layout: DataLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert "no hard links (Operation not permitted)" in refused(layout)


def test_without_exclusive_creation(layout: DataLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., int] = os.open

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        return real(path, flags & ~os.O_EXCL, *more, **named)

    monkeypatch.setattr(os, "open", opened)
    assert "O_EXCL" in refused(layout)


def test_without_locks(layout: DataLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    assert "flock locks a file twice" in refused(layout)

    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "no flock (No locks available)" in refused(layout)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"EntryTimeout": 1_000_000_000}, "--entry-cache 0"),
        ({"AttrTimeout": 60_000_000_000}, "--attr-cache 1"),
        ({"Chunk": {"Writeback": True}}, "--writeback"),
        ({"Meta": {"OpenCache": 5}}, "--open-cache"),
        ({"AttrTimeout": 1_000_000_000, "DirEntryTimeout": 1_000_000_000}, None),
    ],
)
def test_options_of_juicefs(
    layout: DataLayout, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], text: str | None
) -> None:
    monkeypatch.setattr(shared, "file_system_of", lambda path: "fuse.juicefs")
    (layout.root.parent / ".config").write_text(json.dumps(options))
    if text is None:
        check_shared(layout)
    else:
        assert text in refused(layout)


def test_what_git_reads_stays_in_place(tmp_path: Path) -> None:
    """Git on another machine may have looked at it just now: it does not find what replaces it."""
    config, hooks = tmp_path / "gitconfig", tmp_path / "hooks"

    def start() -> dict[str, int]:
        write_git_config(config)
        write_hook(hooks)
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        return {str(path): path.stat().st_ino for path in files}

    first = start()
    assert len(first) == 2
    assert start() == first
    (hook,) = hooks.rglob("reference-transaction")
    hook.write_text("#!/bin/sh\n")
    config.write_text("[core]\n")
    start()
    assert "ARTIFACTS_ASK" in hook.read_text() and os.access(hook, os.X_OK)
    assert config.read_text() == GIT_CONFIG
    hook.chmod(0o600)  # git would pass over it
    start()
    assert os.access(hook, os.X_OK)
