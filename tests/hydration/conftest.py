"""Fixtures of the tests of hydration: one real repository behind a real server and a proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.delay_proxy import DelayProxy
from tests.git.http_backend import Backend, http_backend
from tests.hydration.tree_repository import TreeRepository, make_tree_repository


@pytest.fixture(scope="session")
def tree_repository(tmp_path_factory: pytest.TempPathFactory) -> TreeRepository:
    """Some 970 files in 60 directories, shared by all tests: do not change it."""
    return make_tree_repository(tmp_path_factory.mktemp("tree") / "tree.git")


@pytest.fixture
def backend(tree_repository: TreeRepository) -> Iterator[Backend]:
    """`git http-backend` that serves it as ``/tree.git``."""
    with http_backend(tree_repository.path.parent) as running:
        yield running


@pytest.fixture
def line(backend: Backend) -> Iterator[DelayProxy]:
    """The line to `backend`: records requests, and can delay and break them."""
    with DelayProxy(("127.0.0.1", backend.port)) as running:
        yield running


@pytest.fixture
def url(line: DelayProxy) -> str:
    """The repository's URL through `line`."""
    return f"http://127.0.0.1:{line.port}/tree.git"
