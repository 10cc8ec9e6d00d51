"""``status`` and ``list-repos`` for programs: lines that stay as they are.

What is here is only ever added to, at the end of a line. No value holds a blank, a tab or a
newline: they are written as ``%20``, ``%09``, ``%0A`` and the like, and ``%`` as ``%25``; what is
not known is ``none`` (``never`` for what has not happened yet).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from artifactfs.redact import redact

Fields = dict[str, Any]

_PREPARING = ("starting", "cloning", "mounting", "restarting", "queued")
_RECORDED = ("not running", "unmounting")


def repo_line(repo: Fields) -> str:
    """NAME, branch or ref, mount point and remote, with a tab between them."""
    ref = (repo.get("source_ref") or "HEAD").removeprefix("refs/heads/")
    columns = (repo["name"], ref, repo["mount_point"], redact(repo["remote"]))
    return "\t".join(_value(column) for column in columns)


def status_line(repo: Fields) -> str:
    """``key=value`` pairs with a blank between them."""
    return " ".join(f"{key}={_value(value)}" for key, value in _pairs(repo).items())


def _pairs(repo: Fields) -> Fields:
    required, head = repo.get("require_commit"), repo.get("head") or "none"
    ahead, behind = repo.get("ahead") or 0, repo.get("behind") or 0
    hydration = repo.get("hydration") or {}
    overlay = repo.get("overlay") or {}
    last_fetch = repo.get("last_fetch")
    error = (repo.get("error") or {}).get("message")
    return {
        "repo": repo["name"],
        "state": plain_state(repo["state"]),
        "head": head,
        "ref": repo.get("ref") or ("HEAD" if repo.get("head") else "none"),
        "source_ref": repo.get("source_ref") or "HEAD",
        "required_commit": required or "none",
        "acquisition": _acquisition(repo) if required else "not_required",
        "base_commit": repo.get("commit") or head,
        "remote_refresh": "enabled" if repo.get("refresh_s") else "disabled",
        "ahead": ahead,
        "behind": behind,
        "diverged": _bool(ahead and behind),
        "last_fetch": _last_fetch(last_fetch),
        "result": "never" if not last_fetch else "ok" if last_fetch["ok"] else "failed",
        "prepare_error": "_".join(redact(error).split()) if error else "none",
        "hydrated_blobs": hydration.get("blobs_here", 0),
        "hydrated_bytes": hydration.get("bytes_here", 0),
        "overlay_dirty": _bool(overlay.get("dirty_files")),
        "mount_point": repo["mount_point"],
        "overlay_files": overlay.get("dirty_files", 0),
        "overlay_bytes": overlay.get("dirty_bytes", 0),
        "history": "complete" if repo.get("history_complete") else "incomplete",
        "doing": repo["state"].replace(" ", "_"),
    }


def plain_state(state: str) -> str:
    """``mounted``, ``unmounted``, ``preparing`` or ``failed``."""
    if state in _PREPARING:
        return "preparing"
    if state in _RECORDED:
        return "unmounted"
    return "failed" if state == "not answering" else state


def _acquisition(repo: Fields) -> str:
    """It was verified when it was cloned."""
    return "verified" if repo.get("head") or repo["state"] == "mounted" else "pending"


def _last_fetch(record: Fields | None) -> str:
    if not record:
        return "never"
    at = float(record["time"])
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _bool(value: object) -> str:
    return "true" if value else "false"


def _value(value: object) -> str:
    """Without anything that a line is taken apart at."""
    text = str(value) or "none"
    if not set(text) & set("% \t\n\r") and text.isprintable():
        return text
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(
        f"%{byte:02X}" if byte <= 0x20 or byte >= 0x7F or byte == 0x25 else chr(byte)
        for byte in raw
    )
