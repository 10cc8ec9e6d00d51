"""HEAD and the refs of a gitdir, read from its files: some µs, no process, none of the objects.

As gitrepository-layout(5) and git-pack-refs(1) have them. Imports little, so that the command line
can look without waiting for it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import StateError

Oid = bytes

SNAPSHOTS = "refs/artifactfs/snapshots/"
"""States of a working tree, kept as commits."""
PUSHED = "refs/artifactfs/pushed/"
"""What the remote has as well: snapshots by their names, branches as ``heads/NAME``."""

_SYMBOLIC = "ref:"
_MAX_SYMBOLIC = 5  # as in git
_BLANK = " \t\r\n"
_HEX_OID = re.compile(r"[0-9a-f]{40}")
_BAD_REF = re.compile(
    r"(^|/)\.|\.\.|[\x00-\x20\x7f~^:?*\[\\]|@\{|/{2}|/$|\.$|\.lock(/|$)|^@$", re.ASCII
)


def valid_ref(name: str) -> bool:
    """git-check-ref-format(1) for full names: a server's word for it is not enough."""
    return name.startswith("refs/") and name.count("/") >= 2 and not _BAD_REF.search(name)


def read_refs(gitdir: Path) -> dict[str, Oid]:
    """Every ref that is not symbolic, by full name. Needs none of the objects."""
    refs: dict[str, Oid] = {}
    with suppress(FileNotFoundError):
        text = (gitdir / "packed-refs").read_text("utf-8", "surrogateescape")
        for line in text.split("\n"):  # names may have what Unicode takes for the end of a line
            oid, _, name = line.partition(" ")
            if _HEX_OID.fullmatch(oid):
                refs[name] = bytes.fromhex(oid)
    for folder, _, names in os.walk(gitdir / "refs"):
        for file in names:
            path = Path(folder, file)
            oid = _read_line(path)
            if _HEX_OID.fullmatch(oid):
                refs[str(path.relative_to(gitdir))] = bytes.fromhex(oid)
    return refs


@dataclass(frozen=True, slots=True)
class Head:
    """`ref` is the full name of the branch that is checked out, None when HEAD is detached;
    `commit` is None on a branch without commits."""

    ref: str | None
    commit: Oid | None


def read_head(gitdir: Path) -> Head:
    """What HEAD is. Raises: StateError when it is missing or malformed."""
    content = _read_line(gitdir / "HEAD")
    if _HEX_OID.fullmatch(content):
        return Head(None, bytes.fromhex(content))
    if not content.startswith(_SYMBOLIC):
        raise StateError(f"{gitdir / 'HEAD'} is missing or malformed")
    ref = content.removeprefix(_SYMBOLIC).strip(_BLANK)
    return Head(ref, resolve_ref(gitdir, ref))


def resolve_ref(gitdir: Path, ref: str) -> Oid | None:
    """What a full ref name stands for, also by way of symbolic refs; None where there is none."""
    for _ in range(_MAX_SYMBOLIC):
        loose = _read_line(gitdir / ref) if valid_ref(ref) else ""
        if _HEX_OID.fullmatch(loose):
            return bytes.fromhex(loose)
        if not loose.startswith(_SYMBOLIC):
            return _packed(gitdir, ref)
        ref = loose.removeprefix(_SYMBOLIC).strip(_BLANK)
    return None


def _packed(gitdir: Path, ref: str) -> Oid | None:
    try:
        packed = (gitdir / "packed-refs").read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    found = re.search(rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", packed, re.MULTILINE)
    return bytes.fromhex(found[1]) if found else None


def symlinked_ref(path: Path) -> str | None:
    """The ref that the symlink `path` names, as older gits and ``core.preferSymlinkRefs`` have HEAD
    on a branch; None for anything else."""
    try:
        target = os.readlink(path)
    except OSError:
        return None
    return target if valid_ref(target) else None


def _read_line(path: Path) -> str:
    if (target := symlinked_ref(path)) is not None:
        return f"{_SYMBOLIC} {target}"
    try:
        return path.read_text("utf-8", "surrogateescape").strip(_BLANK)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""
