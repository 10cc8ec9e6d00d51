"""The user's git configuration, as git itself prints it."""

from __future__ import annotations

import os
from pathlib import Path

from artifactfs.errors import InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.configuration.entries import Configuration, parsed, parsed_entry
from artifactfs.git.surroundings import Setting, current

NO_GITDIR = {"GIT_DIR": os.devnull}
"""For a git that is to know the user's configuration alone, whatever folder it runs in."""

_DEADLINE_S = 10.0


async def read_configuration(
    gitdir: Path | None = None, *, more: tuple[Setting, ...] = ()
) -> Configuration:
    """All of it, that of `gitdir` too. Takes a git process, unless it is known already.

    Raises: InvalidInput where git does not understand a file of it.
    """
    known = current().configuration
    if gitdir is None and not more and isinstance(known, Configuration):
        return known
    try:
        output = await run_git(
            *("config", "--list", "-z", "--show-origin", "--includes"),
            gitdir=gitdir,
            env=None if gitdir else NO_GITDIR,
            as_daemon=gitdir is None,
            more=more,
            deadline_s=_DEADLINE_S,
        )
    except GitFailed as error:
        raise InvalidInput(
            f"git cannot read its configuration: {error.message}",
            hint="mend that file: git config --list says when it is right",
        ) from error
    return parsed(output)


async def http_settings(url: str, gitdir: Path | None = None) -> dict[str, str | None]:
    """The ``http.*`` entry that applies to `url` of each key, by the longest match of
    ``http.<url>.*``. Takes a git process."""
    try:
        output = await run_git(
            *("config", "-z", "--get-urlmatch", "http", url),
            gitdir=gitdir,
            env=None if gitdir else NO_GITDIR,
            as_daemon=gitdir is None,
            deadline_s=_DEADLINE_S,
        )
    except GitFailed:
        return {}
    text = output.decode("utf-8", "surrogateescape")
    entries = (parsed_entry("", field) for field in text.split("\0") if field)
    return {entry.key: entry.value for entry in entries}
