"""Fetching the remote's refs, and remembering how that went (``STATE/repos/NAME/fetch.json``)."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import Any

from artifactfs.config import RepoSettings
from artifactfs.errors import ArtifactFSError
from artifactfs.git.configuration.kept import surroundings_of
from artifactfs.git.remote.again import again
from artifactfs.git.remote.fetch import FetchResult, fetch_refs
from artifactfs.git.remote.remote import Remote
from artifactfs.git.surroundings import adopt
from artifactfs.paths import RepoLayout
from artifactfs.redact import redact
from artifactfs.system.files import replace_file

log = logging.getLogger(__name__)

Record = dict[str, Any]
"""``time`` (seconds of the epoch), ``ok``, ``result`` (a sentence)."""


def last_fetch(layout: RepoLayout) -> Record | None:
    """How the last fetch went, whoever did it."""
    try:
        record = json.loads((layout.directory / "fetch.json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


async def fetch_recorded(layout: RepoLayout, settings: RepoSettings, remote: Remote) -> Record:
    """Fetch and remember it. Raises: RemoteError."""
    try:
        attempt = partial(fetch_refs, layout, settings, remote)
        result = await again(attempt, settings.deadline_s)
    except ArtifactFSError as error:
        remember(layout, ok=False, result=f"failed: {redact(error.message)}")
        raise
    changes = described(result)
    what = f"{len(changes)} refs updated" if changes else "up to date"
    return {**remember(layout, ok=True, result=what), "updated": changes}


def described(result: FetchResult) -> dict[str, str]:
    """Ref → what happened to it, as `git fetch` says it."""
    return {change.name: _move(change.old, change.new) for change in result.changes}


def _move(old: bytes | None, new: bytes | None) -> str:
    if new is None:
        return "deleted"
    short = new.hex()[:12]
    return f"new at {short}" if old is None else f"{old.hex()[:12]}..{short}"


def remember(layout: RepoLayout, *, ok: bool, result: str) -> Record:
    """Write the record, replacing the file as a whole. A full disk only loses the record."""
    record = {"time": time.time(), "ok": ok, "result": result}
    path = layout.directory / "fetch.json"
    try:
        replace_file(path, json.dumps(record))
    except OSError as error:
        log.warning("cannot note how a fetch went: %s", error)
    return record


async def fetch_once(layout: RepoLayout, settings: RepoSettings) -> Record:
    """Connect, fetch, close: for a repository that is not mounted. Raises: RemoteError."""
    from artifactfs.daemon.repositories.remotes import RemoteConnection

    adopt(await surroundings_of(layout, settings))
    connection = RemoteConnection(layout, settings.remote, settings.deadline_s)
    try:
        return await fetch_recorded(layout, settings, await connection.shared())
    finally:
        await connection.aclose()
