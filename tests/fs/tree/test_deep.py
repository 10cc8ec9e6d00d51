"""A chain of folders as deep as a path can name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fast_import import FILE, FastImport
from tests.fs.mounting import Mount, git

DEPTH = 1_900
"""2 bytes each, below PATH_MAX; git takes no deeper tree than 2,048."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two commits that differ at the end of the chain alone."""
    work = tmp_path_factory.mktemp("deep")
    with FastImport(work / ".git") as stream:
        for content in (b"one\n", b"two\n"):
            attributes = stream.blob(b"*.txt text eol=crlf\n")
            chain = b"d/" * DEPTH
            stream.commit(
                content.decode(),
                {
                    b".gitattributes": (FILE, attributes),
                    chain + b"file": (FILE, stream.blob(content)),
                    chain + b"same": (FILE, stream.blob(b"same\n")),
                },
            )
            stream.tag(content.decode().strip())
    return work


def test_a_deep_chain_is_read_changed_and_switched(
    deep: Path, new_mount: Callable[..., Mount]
) -> None:
    mount = new_mount(deep, "one").start()
    bottom = Path("d/" * DEPTH)
    os.chdir(mount.path)
    try:
        assert (bottom / "file").read_bytes() == b"one\n"
        two = git("rev-parse", "two", cwd=deep).strip()
        mount.ask("switch", commit=two)
        assert (bottom / "file").read_bytes() == b"two\n"
        (bottom / "same").write_bytes(b"changed\n")
        (bottom / "new").write_bytes(b"new\n")
        changes = sorted(path for path, _ in mount.ask("local_changes"))
        assert changes == [f"{bottom}/new", f"{bottom}/same"]
        found = subprocess.run(["find", ".", "-type", "f"], capture_output=True, text=True)
        assert len(found.stdout.splitlines()) == 4 + (not os.path.isdir(".git"))
        mount.ask("switch", commit=git("rev-parse", "one", cwd=deep).strip())
        assert (bottom / "same").read_bytes() == b"changed\n"
    finally:
        os.chdir("/")
    mount.restart(kill=True)
    os.chdir(mount.path)
    try:
        assert (bottom / "file").read_bytes() == b"one\n"
        assert (bottom / "new").read_bytes() == b"new\n"
    finally:
        os.chdir("/")
