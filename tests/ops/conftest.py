"""Fixtures of the tests about running it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from benchmarks.fast_import import FILE, FastImport

FILES = 40
MIB = 1 << 20


@pytest.fixture(scope="session")
def bulky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """40 files of 1 MiB that do not compress, and their SHA-256."""
    bare = tmp_path_factory.mktemp("bulky") / "bulky.git"
    rng = random.Random(7)
    digests = {}
    with FastImport(bare) as stream:
        files = {}
        for number in range(FILES):
            content = rng.randbytes(MIB)
            name = f"folder{number % 4}/file{number}.bin"
            digests[name] = hashlib.sha256(content).hexdigest()
            files[name.encode()] = (FILE, stream.blob(content))
        stream.commit("Add bulky files\n", files)
    return bare, digests
