"""Fixtures of the tests of Git on disk and on the wire."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.git.http_backend import Backend, http_backend
from tests.git.pack_samples import SampleRepository, make_sample_repository
from tests.git.sample_repository import Sample, git, make_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleRepository:
    """A small repository (see `SampleRepository`), shared by all tests: do not change it."""
    return make_sample_repository(tmp_path_factory.mktemp("sample") / "repo")


@pytest.fixture(scope="session")
def hosted_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hosted` copies."""
    directory = tmp_path_factory.mktemp("hosted")
    make_sample(directory)
    return directory


@pytest.fixture
def hosted(hosted_template: Path, tmp_path: Path) -> Sample:
    """A repository of this test's own (see `make_sample`), as a work tree and a bare remote."""
    directory = tmp_path / "hosted"
    shutil.copytree(hosted_template, directory, symlinks=True)
    found = Sample(directory / "work", directory / "sample.git")
    git("remote", "set-url", "origin", str(found.bare), cwd=found.work)
    return found


@pytest.fixture
def backend(hosted: Sample) -> Iterator[Backend]:
    """`git http-backend` that serves `hosted` as ``/sample.git``."""
    with http_backend(hosted.bare.parent) as running:
        yield running
