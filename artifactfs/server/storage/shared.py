"""What a file system must guarantee so that several servers can use one data folder.

- ``O_EXCL``: of all who make a file at the same time, one succeeds. Git locks refs with it.
- ``rename`` replaces a file at once: readers see the old one or the new one.
- Close-to-open: whoever opens a name after a file was closed, or renamed to it, on another machine
  sees that file. So names of files must not be remembered, not for a second either: git compares a
  ref before it moves it, and would compare what it was. Attributes and names of folders may be for
  a second: git replaces files and never changes them, and a folder is only ever removed.
- ``fsync`` of files and folders: what was synced survives the machine that wrote it.
- Hard links: forks share packs by them.
- ``flock(2)``, over all machines: who puts packs together keeps others from it.

All but the third are tried at each start. Whether two machines agree cannot be tried from one: of
JuiceFS and NFS the options are looked at, and others are believed.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from artifactfs.errors import StateError
from artifactfs.server.storage.settings import DataLayout
from artifactfs.system.locks import locked_at_once
from artifactfs.system.mountinfo import file_system_of

_PAGE = "docs/server-cluster.md says how to mount it"
_NEVER = ("EntryTimeout", "NegEntryTimeout")
_A_SECOND = ("AttrTimeout", "DirEntryTimeout")
_NFS = ("noac", "lookupcache=none")


def check_shared(layout: DataLayout) -> None:
    """Raises: StateError, with what is missing."""
    try:
        with tempfile.TemporaryDirectory(prefix="probe.", dir=layout.trash) as place:
            missing = _missing(Path(place))
    except OSError as error:
        raise StateError(f"{layout.root} cannot be used: {error.strerror}") from error
    if missing is None:
        kind = file_system_of(layout.root)
        if "juicefs" in kind:
            missing = _juicefs(layout.root)
        elif kind.startswith("nfs"):
            missing = _nfs(layout.root)
    if missing is not None:
        raise StateError(f"several servers cannot share {layout.root}: {missing}", hint=_PAGE)


def _missing(place: Path) -> str | None:
    one, other = place / "one", place / "other"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for path in (one, other):
        with os.fdopen(os.open(path, flags, 0o700), "w") as file:
            file.write("#!/bin/sh\nexit 0\n")
            file.flush()
            os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.close(os.open(one, flags))
        return "O_EXCL makes a file that is there already"
    wanted = other.stat().st_ino
    os.replace(other, one)
    if one.stat().st_ino != wanted or other.exists():
        return "rename does not replace"
    try:
        os.link(one, other)
    except OSError as error:
        return f"no hard links ({error.strerror})"
    if one.stat().st_nlink != 2 or other.stat().st_ino != wanted:
        return "hard links are copies"
    try:
        with locked_at_once(one), locked_at_once(one) as again:
            if again:
                return "flock locks a file twice"
    except OSError as error:
        return f"no flock ({error.strerror})"
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        return f"folders cannot be synced ({error.strerror})"
    finally:
        os.close(folder)
    try:
        subprocess.run([one], check=True)
    except (OSError, subprocess.CalledProcessError):
        return "a program in it cannot be run, and a hook of git has to (mounted with noexec?)"
    return None


def _juicefs(root: Path) -> str | None:
    """JuiceFS shows its configuration in the root of a mount."""
    for folder in (root, *root.parents):
        try:
            found = json.loads((folder / ".config").read_text())
        except (OSError, ValueError):
            continue
        if found.get("Chunk", {}).get("Writeback"):
            return "JuiceFS is mounted with --writeback, so what was synced is on one machine alone"
        if found.get("Meta", {}).get("OpenCache"):
            return "JuiceFS is mounted with --open-cache: it must be 0"
        remembers = any(found.get(key) for key in _NEVER)
        if remembers or any(found.get(key, 0) > 1_000_000_000 for key in _A_SECOND):
            options = "--entry-cache 0 --dir-entry-cache 1 --attr-cache 1"
            return f"JuiceFS remembers names for too long: mount it with {options}"
        return None
    return None


def _nfs(root: Path) -> str | None:
    mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [each for each in mounts if root.resolve().is_relative_to(each[1])]
    options = max(holding, key=lambda each: len(each[1]))[3].split(",") if holding else []
    lacking = [option for option in _NFS if option not in options]
    return f"NFS is mounted without {','.join(lacking)}" if lacking else None
