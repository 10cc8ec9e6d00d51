"""The template of new repositories (git-init(1)): copied as git does, before anything of ours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SAMPLE = ".sample"
"""How the names of git's own examples of hooks end."""


def copy_template(template: Path, gitdir: Path) -> str:
    """Copy what is in `template` and not in `gitdir`; returns the text of its ``config``.

    Names that begin with a dot are passed over, and so is what is neither file, folder nor
    symlink. What cannot be read is left out, as nobody can mend it here. Blocks on the disk.
    """
    for folder, folders, names in os.walk(template):
        folders[:] = [name for name in folders if not name.startswith(".")]
        target = gitdir / os.path.relpath(folder, template)
        target.mkdir(parents=True, exist_ok=True)
        for name in (*names, *folders):
            source = Path(folder, name)
            if name.startswith(".") or (source.is_dir() and not source.is_symlink()):
                continue
            _copy(source, target / name)
    try:
        return (template / "config").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def _copy(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        return
    try:
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_file():
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    except OSError:
        target.unlink(missing_ok=True)
