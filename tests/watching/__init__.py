"""Whether a daemon's own processes ask for something in its mounts: see ``sitecustomize``."""

from __future__ import annotations

import os
from pathlib import Path


def watch_environment(file: Path, path: str = "") -> dict[str, str]:
    """The environment of a daemon, or of another process that serves, by which it is watched.
    `path`: where else it is to look for modules first."""
    folders = [path, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "ARTIFACT_FS_TRESPASSES": str(file),
    }


def check_trespasses(file: Path) -> None:
    """Raises: AssertionError that names who asked for what."""
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    shown = "\n".join(dict.fromkeys(lines))
    assert not lines, f"processes of ours have asked for something in their mount:\n{shown}"
