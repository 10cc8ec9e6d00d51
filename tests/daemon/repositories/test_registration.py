"""What a crash in the middle of adding leaves, and when it may be deleted."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import pytest

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.housekeeping import collect_garbage
from artifactfs.daemon.repositories.registration import MARKER, Reservation, forget_adding
from artifactfs.paths import StateLayout

REMOTE = "https://example.org/a.git"


@pytest.fixture
def state(tmp_path: Path) -> StateLayout:
    """A state root with the repository `a`, whose marker a killed process left."""
    state = StateLayout(tmp_path / "state")
    mount_point = tmp_path / "mnt"
    reservation = Reservation(state, settings_of(mount_point), mount_point)
    gitdir = reservation.layout.gitdir
    subprocess.run(["git", "init", "-q", "--bare", gitdir], check=True)
    subprocess.run(["git", "-C", gitdir, "remote", "add", "origin", REMOTE], check=True)
    reservation.commit()
    (gitdir / "precious").write_text("mine")
    marker(state).write_text("4194304 1\n")
    return state


def settings_of(mount_point: Path) -> RepoSettings:
    return RepoSettings(name="a", remote=REMOTE, mount_point=str(mount_point))


def marker(state: StateLayout) -> Path:
    return state.repo("a").directory / MARKER


def test_data_is_kept_where_the_row_of_it_is_damaged(state: StateLayout, tmp_path: Path) -> None:
    with sqlite3.connect(state.registry_db) as connection:
        connection.execute("UPDATE repos SET checksum = checksum + 1 WHERE name = 'a'")
    again = Reservation(state, settings_of(tmp_path / "mnt"), tmp_path / "mnt")
    assert again.taken_over
    again.commit()
    assert (state.repo("a").gitdir / "precious").read_text() == "mine"
    assert not marker(state).exists()


def test_gc_forgets_that_a_registered_repository_was_being_added(state: StateLayout) -> None:
    collect_garbage(state, adding=())
    assert not marker(state).exists()
    state.registry_db.unlink()
    collect_garbage(state, adding=())
    assert (state.repo("a").gitdir / "precious").read_text() == "mine"


def test_a_marker_of_a_removal_or_of_a_living_process_stays(
    state: StateLayout, tmp_path: Path
) -> None:
    marker(state).write_text("")
    forget_adding(state.repo("a").directory)
    assert marker(state).exists()
    other = RepoSettings(name="b", remote=REMOTE, mount_point=str(tmp_path / "b"))
    reservation = Reservation(state, other, tmp_path / "b")
    forget_adding(reservation.layout.directory)
    assert (reservation.layout.directory / MARKER).exists()
