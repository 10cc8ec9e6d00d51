"""Whether git is to look for faults in the objects that it fetches (``fetch.fsckObjects``)."""

from __future__ import annotations

import logging
from pathlib import Path

from artifactfs.git.command import git_version
from artifactfs.git.configuration.entries import Configuration, as_bool, as_path
from artifactfs.git.configuration.listing import read_configuration

log = logging.getLogger(__name__)

_TAKES_LEVELS = (2, 44)
"""The first git whose index-pack can be told by ``--fsck-objects`` what to make of each fault."""


async def fsck_arguments(gitdir: Path | None) -> tuple[str, ...]:
    """Arguments of ``index-pack``; none where nothing is to be looked for.

    What is fetched lacks blobs, so it is what git does in a partial clone: it looks at each object
    alone. Where faults are to be passed over and git cannot be told which, it looks for none: a
    clone would be made. Takes a git process, unless the configuration is known. Raises:
    InvalidInput, GitFailed.
    """
    configuration = await read_configuration(gitdir)
    wanted = [configuration.last(f"{section}.fsckobjects") for section in ("transfer", "fetch")]
    last = next((value for value in reversed(wanted) if value is not None), None)
    if last is None or not as_bool(last):
        return ()
    levels = _levels(configuration)
    if not levels:
        return ("--fsck-objects",)
    if await git_version() >= _TAKES_LEVELS:
        return (f"--fsck-objects={','.join(levels)}",)
    log.warning("fetched objects are not checked: this git cannot pass over what fetch.fsck.* says")
    return ()


def _levels(configuration: Configuration) -> list[str]:
    """``fetch.fsck.<msg-id>`` and its ``skipList``, as index-pack takes them."""
    levels = []
    for entry in configuration.section("fetch.fsck"):
        value = entry.value or ""
        if entry.variable == "skiplist":
            value = as_path(value) or value
        levels.append(f"{entry.variable}={value}")
    return levels
