"""Fixtures of the tests of Git on disk and on the wire."""

from __future__ import annotations

import pytest

from tests.git.pack_samples import SampleRepository, make_sample_repository


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleRepository:
    """A small repository (see `SampleRepository`), shared by all tests: do not change it."""
    return make_sample_repository(tmp_path_factory.mktemp("sample") / "repo")
