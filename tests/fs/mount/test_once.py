"""Changes that a process has made and not answered, as the ones after it find them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifactfs.fs.kernel.handover import RESENT
from artifactfs.fs.mount.once import Once, forget, left_in
from artifactfs.fs.overlay.database import Overlay, create_overlay
from artifactfs.fs.overlay.pending import put_meta

FIRST, SECOND, THIRD, FOURTH = 2, 4, 6, 8


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "overlay.db"
    create_overlay(path, [])
    return path


@contextmanager
def process(database: Path) -> Iterator[Once]:
    """One that serves the mount, and dies."""
    overlay = Overlay(database)
    once = Once(overlay)
    once.begin(taken_over=True)
    yield once
    overlay.connection.close()


def change(once: Once, number: int) -> None:
    assert not once.was_done(number)
    overlay = once._overlay
    overlay.answering = number & ~RESENT
    overlay.apply([put_meta("what", number & ~RESENT)])
    overlay.answering = 0


def test_what_nobody_has_asked_for_again_is_handed_on(database: Path) -> None:
    """Two processes die, the second one before the kernel's repetition has come to it."""
    with process(database) as once:
        change(once, FIRST)
    with process(database) as once:
        change(once, SECOND | RESENT)
    with process(database) as once:
        change(once, THIRD | RESENT)
    with process(database) as once:
        for number in (SECOND, THIRD, FIRST):
            assert once.was_done(number | RESENT)
            once.answered(number | RESENT)
            assert not once.was_done(number | RESENT)


def test_what_was_answered_is_handed_on_no_more(database: Path) -> None:
    """With the first new request all that are repeated have come, but not all are answered."""
    with process(database) as once:
        change(once, FIRST)
    with process(database) as once:
        change(once, SECOND | RESENT)
    with process(database) as once:
        assert once.was_done(SECOND | RESENT)  # and waits
        change(once, THIRD)
        assert left_in(once._overlay) >= {FIRST, SECOND}, "as it was found"
    with process(database) as once:
        assert once.done == {SECOND, THIRD}
        assert not once.was_done(FOURTH)
        change(once, FOURTH)
    with process(database) as once:
        assert once.done >= {FOURTH} and FIRST not in once.done


def test_another_mount_counts_anew(database: Path) -> None:
    with process(database) as once:
        change(once, FIRST)
    with process(database) as once:
        change(once, SECOND | RESENT)
    with process(database) as once:  # of the new mount
        once._overlay.apply(forget(once._overlay))
    with process(database) as once:
        assert not once.done
