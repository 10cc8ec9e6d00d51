"""Fifty repositories, one daemon."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.many_mounts import KIB, measure, show


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fifty_repositories_by_one_daemon(tmp_path: Path) -> None:
    """All readable (`measure` reads every file of each), light, and gone after the stop."""
    figures = measure(50, 100, tmp_path)
    print(show(figures))
    assert len(figures.idle_pss) == len(figures.read_pss) == 50
    assert statistics.median(figures.read_pss) < 25 * KIB
    assert figures.left_mounts == 0
    assert figures.left_processes == 0
