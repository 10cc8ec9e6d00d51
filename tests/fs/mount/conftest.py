"""The tests of what a mount means, over both kinds of writes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.fs.mounting import Mount

OF_OUR_MOUNT = frozenset(
    {
        *("every_row_has_a_test", "write_anywhere", "truncate", "first_write", "unlink_open"),
        *("chmod_chown", "times", "sync", "link_counts", "inode_numbers", "no_space"),
        *("xattrs_off", "xattrs_on", "fallocate", "tmpfile", "copy", "gitfile"),
        "hidden_directory",
    }
)
"""Rows that the kernel's overlayfs does not keep, or that look into our overlay: what it does there
is in the second table of ``docs/semantics.md``."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.function.__name__.removeprefix("test_")
    is_semantics = metafunc.module.__name__.rpartition(".")[2].startswith("test_semantics")
    if is_semantics and "native" in metafunc.fixturenames:
        both = os.geteuid() == 0 and name not in OF_OUR_MOUNT
        kinds = [False, True] if both else [False]
        metafunc.parametrize("native", kinds, ids=["fuse", "kernel"][: len(kinds)], indirect=True)


@pytest.fixture
def native(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel takes the writes."""
    return bool(getattr(request, "param", False))


@pytest.fixture
def new_mount(new_mount: Callable[..., Mount], native: bool) -> Callable[..., Mount]:
    def make(*arguments: object, **named: object) -> Mount:
        mount = new_mount(*arguments, **named)
        mount.native = native
        return mount

    return make
