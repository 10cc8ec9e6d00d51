"""What works in a clone works in a mount: archives, tools that look into `.git`, clones of it."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

from tests.e2e.processes import DaemonProcess


def git(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_of_a_commit_without_a_date_go_into_archives(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    git("init", "-q", "-b", "main", source, cwd=tmp_path)
    (source / "a").write_text("content\n")
    git("add", ".", cwd=source)
    undated = {"GIT_COMMITTER_DATE": "@0 +0000", "GIT_AUTHOR_DATE": "@0 +0000"}
    git("commit", "-qm", "Undated", cwd=source, env=undated)
    git("config", "uploadpack.allowFilter", "true", cwd=source)
    mount = daemon.add_repo("undated", source.as_uri())
    for zone in ("UTC", "UTC+12", "UTC-14"):
        script = f"import zipfile; zipfile.ZipFile('{tmp_path}/{zone}.zip', 'w').write('a')"
        subprocess.run(
            ["python3", "-c", script], cwd=mount, check=True, env=os.environ | {"TZ": zone}
        )
        with zipfile.ZipFile(tmp_path / f"{zone}.zip") as archive:
            assert archive.read("a") == b"content\n"
