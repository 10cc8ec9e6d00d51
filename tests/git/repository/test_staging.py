"""Folders for what arrives: several at once, and those of processes that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifactfs.git.repository.staging import remove_staging, staging_folder

OID = "0123456789" * 4
NAMES = ("history", "fetch", "commit-graph", f"tree-{OID}", f"commit-{OID}")


@pytest.mark.parametrize("name", NAMES)
def test_two_at_once_leave_each_other_alone(tmp_path: Path, name: str) -> None:
    first, second = staging_folder(tmp_path, name), staging_folder(tmp_path, name)
    assert first != second
    (first / "pack").mkdir()
    remove_staging(second)
    third = staging_folder(tmp_path, "fetch")
    assert (first / "pack").is_dir() and third.is_dir() and not second.exists()


@pytest.mark.parametrize("name", NAMES)
def test_one_of_another_process_stays_until_that_has_ended(tmp_path: Path, name: str) -> None:
    stage = (
        "import sys; from pathlib import Path;"
        "from artifactfs.git.repository.staging import staging_folder;"
        "print(staging_folder(Path(sys.argv[1]), sys.argv[2]), flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", stage, tmp_path, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    folder = Path(other.stdout.readline().rstrip("\n"))
    staging_folder(tmp_path, "history")
    assert folder.is_dir()
    other.kill()
    other.communicate()
    staging_folder(tmp_path, "history")
    assert not folder.exists()


def test_what_earlier_versions_and_processes_of_this_number_left_is_removed(tmp_path: Path) -> None:
    own = tmp_path / "artifactfs"
    left = [f"{name}{end}" for name in NAMES for end in ("", f".{os.getpid()}-0123abcd")]
    others = ["config", "offered", "history-complete", "fetched", f"tree-{OID}x", "commit-graphs"]
    for name in (*left, "commit-graph.0a1b2c3d", *others):
        (own / name).mkdir(parents=True)
        (own / name / "file").touch()
    staging_folder(tmp_path, "fetch")
    assert sorted(each.name for each in own.iterdir() if each.name in others) == sorted(others)
    assert len(list(own.iterdir())) == len(others) + 1


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "artifactfs").touch()
    with pytest.raises(OSError):
        staging_folder(tmp_path, "fetch")
