"""Where HEAD is, and how far it is from its upstream, without fetching anything.

HEAD, refs and the branch's configuration are read from the gitdir's files (a few microseconds, so
that ``status`` may ask each second); only counting commits takes a git process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifactfs.errors import ArtifactFSError, StateError
from artifactfs.git.repository.refs import read_head, resolve_ref

_SECTION = re.compile(r'\[\s*(?P<kind>[\w.-]+)\s*(?:"(?P<name>(?:[^"\\]|\\.)*)")?\s*\]')
COUNT_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Tracking:
    """What is checked out, and what it tracks. `oid` and `upstream_oid` in hex; `branch` and
    `upstream` are short names. None: not known, detached, or no upstream."""

    oid: str | None
    branch: str | None
    upstream: str | None
    upstream_oid: str | None


def read_tracking(gitdir: Path) -> Tracking:
    """Read HEAD and its upstream."""
    try:
        head = read_head(gitdir)
    except (StateError, OSError):
        return Tracking(None, None, None, None)
    oid = _hex(head.commit)
    if head.ref is None:
        return Tracking(oid, None, None, None)
    branch = head.ref.removeprefix("refs/heads/")
    upstream_ref = _upstream_ref(gitdir, branch)
    if upstream_ref is None:
        return Tracking(oid, branch, None, None)
    upstream = upstream_ref.removeprefix("refs/remotes/")
    return Tracking(oid, branch, upstream, _hex(resolve_ref(gitdir, upstream_ref)))


def _hex(oid: bytes | None) -> str | None:
    return None if oid is None else oid.hex()


def _upstream_ref(gitdir: Path, branch: str) -> str | None:
    """``refs/remotes/REMOTE/BRANCH`` by ``branch.NAME.remote`` and ``.merge``."""
    settings = _branch_settings(gitdir, branch)
    remote, merge = settings.get("remote"), settings.get("merge", "")
    if not remote or not merge.startswith("refs/heads/"):
        return None
    if remote == ".":
        return merge
    return f"refs/remotes/{remote}/{merge.removeprefix('refs/heads/')}"


def _branch_settings(gitdir: Path, branch: str) -> dict[str, str]:
    try:
        lines = (gitdir / "config").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    inside = False
    for line in lines:
        if match := _SECTION.match(line.strip()):
            name = re.sub(r"\\(.)", r"\1", match["name"] or "")
            inside = match["kind"].lower() == "branch" and name == branch
        elif inside and "=" in line:
            key, _, value = line.partition("=")
            found[key.strip().lower()] = value.strip().strip('"')
    return found


async def ahead_behind(gitdir: Path, oid: str, upstream_oid: str) -> tuple[int, int] | None:
    """Commits only in `oid`, and only in `upstream_oid`; None if git cannot say.

    Only with the whole history here: git would fetch what is missing.
    """
    if oid == upstream_oid:
        return 0, 0
    from artifactfs.git.command import run_git

    arguments = ("rev-list", "--left-right", "--count", f"{oid}...{upstream_oid}", "--")
    try:
        counts = await run_git(*arguments, gitdir=gitdir, deadline_s=COUNT_DEADLINE_S)
    except ArtifactFSError:
        return None
    ahead, behind = counts.split()
    return int(ahead), int(behind)


def head_fields(head: Tracking, counts: tuple[int, int] | None) -> dict[str, Any]:
    """As ``status`` shows it."""
    ahead, behind = counts if counts is not None else (None, None)
    return {
        "head": head.oid,
        "ref": head.branch,
        "upstream": head.upstream,
        "ahead": ahead,
        "behind": behind,
    }


def offline_fields(gitdir: Path) -> dict[str, Any]:
    """The fields of ``status`` that need no counting."""
    head = read_tracking(gitdir)
    same = head.oid is not None and head.oid == head.upstream_oid
    return head_fields(head, (0, 0) if same else None)
