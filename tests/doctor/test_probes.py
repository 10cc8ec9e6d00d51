"""Whether a mount answers, asked from outside of it."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from artifactfs.doctor import liveness
from artifactfs.doctor.liveness import Probes


@pytest.mark.parametrize(
    ("program", "deadline_s", "fault"),
    [
        ("pass", 60, None),
        ("import errno, sys; sys.exit(errno.ENOTCONN)", 60, errno.ENOTCONN),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 60, errno.ETIMEDOUT),
        ("import time; time.sleep(600)", 0.2, errno.ETIMEDOUT),
    ],
)
def test_the_answer_is_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch, program: str, deadline_s: float, fault: int | None
) -> None:
    monkeypatch.setattr(liveness, "_PROBE", program)
    probes = Probes(deadline_s)
    probes.start("/mount")
    assert probes.fault("/mount") == fault
    time.sleep(0.2)  # a process that was killed has ended by then
    assert probes.fault("/mount") == fault


def test_a_folder_answers(tmp_path: Path) -> None:
    probes = Probes(60)
    probes.start(str(tmp_path))
    probes.start(str(tmp_path / "absent"))
    assert probes.fault(str(tmp_path)) is None
    assert probes.fault(str(tmp_path / "absent")) == errno.ENOENT
