"""Where HEAD is, and how far it is from its upstream, without fetching anything.

HEAD, refs and the branch's configuration are read from the gitdir's files (a few microseconds, so
that ``status`` may ask each second); only counting commits takes a git process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifactfs.errors import ArtifactFSError

_SECTION = re.compile(r'\[\s*(?P<kind>[\w.-]+)\s*(?:"(?P<name>(?:[^"\\]|\\.)*)")?\s*\]')
_OID = re.compile(r"[0-9a-f]{40}")
COUNT_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Head:
    """`oid` and `upstream_oid` in hex; `branch` and `upstream` are short names. None: not known,
    detached, or no upstream."""

    oid: str | None
    branch: str | None
    upstream: str | None
    upstream_oid: str | None


def head_of(gitdir: Path) -> Head:
    """Read HEAD and its upstream."""
    try:
        text = (gitdir / "HEAD").read_text().strip()
    except OSError:
        return Head(None, None, None, None)
    if not text.startswith("ref:"):
        return Head(text, None, None, None)
    ref = text.removeprefix("ref:").strip()
    branch = ref.removeprefix("refs/heads/")
    upstream_ref = _upstream_ref(gitdir, branch)
    upstream_oid = resolve_ref(gitdir, upstream_ref) if upstream_ref else None
    upstream = upstream_ref.removeprefix("refs/remotes/") if upstream_ref else None
    return Head(resolve_ref(gitdir, ref), branch, upstream, upstream_oid)


def resolve_ref(gitdir: Path, ref: str) -> str | None:
    """The hex oid of a full ref name, loose or packed; None where there is none."""
    try:
        text = (gitdir / ref).read_text().strip()
        if text.startswith("ref:"):
            return resolve_ref(gitdir, text.removeprefix("ref:").strip())
        if _OID.fullmatch(text):
            return text
    except OSError:
        pass
    try:
        packed = (gitdir / "packed-refs").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", packed, re.MULTILINE)
    return match[1] if match else None


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


def head_fields(head: Head, counts: tuple[int, int] | None) -> dict[str, Any]:
    """As ``status`` shows it."""
    ahead, behind = counts if counts is not None else (None, None)
    return {
        "head": head.oid,
        "ref": head.branch,
        "upstream": head.upstream,
        "ahead": ahead,
        "behind": behind,
    }


def read_head(gitdir: Path) -> dict[str, Any]:
    """The fields of ``status`` that need no counting."""
    head = head_of(gitdir)
    same = head.oid is not None and head.oid == head.upstream_oid
    return head_fields(head, (0, 0) if same else None)
