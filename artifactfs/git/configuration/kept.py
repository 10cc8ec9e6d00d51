"""The surroundings of a repository: what was kept, what this process was given, and where it is."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import InvalidInput
from artifactfs.git.configuration.capture import captured_settings
from artifactfs.git.configuration.conditions import included_for
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.configuration.rewriting import effective_remote
from artifactfs.git.repository.gitdir import config_text, write_own_config
from artifactfs.git.repository.refspecs import tracked_remote
from artifactfs.git.surroundings import (
    Surroundings,
    current,
    load,
    within,
    write_private,
)
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)


async def surroundings_of(layout: RepoLayout, settings: RepoSettings) -> Surroundings:
    """For everything that works for a repository. Takes git processes. Raises: StateError,
    InvalidInput."""
    own = await trio.to_thread.run_sync(captured_settings, dict(os.environ))
    kept = load(layout.git_environment).over(Surroundings({}, own))
    with within(kept):
        found = await included_for(Path(settings.mount_point), layout.gitdir, settings.remote)
    return replace(
        kept,
        includes=found.by_place,
        remote_includes=found.by_remote,
        configuration=found.configuration,
    )


def write_settings(layout: RepoLayout, uid: int | None) -> None:
    """Put the current settings where the gitdir's own config includes them (mode 0600).

    Git ends where it may not read a file that it is to include: so a mount of another user has
    none, and that user's git does without them. Raises: OSError.
    """
    settings = current().all_settings()
    if not settings or uid not in (None, os.geteuid()):
        layout.git_settings.unlink(missing_ok=True)
        return
    sections = []
    for key, value in settings:
        section, _, rest = key.partition(".")
        subsection, dot, name = rest.rpartition(".")
        escaped = subsection.replace("\\", "\\\\").replace('"', '\\"')
        title = f'{section} "{escaped}"' if dot else section
        sections.append((title, [(name, "true" if value is None else value)]))
    text = config_text(sections).encode("utf-8", "surrogateescape")
    write_private(layout.git_settings, text)


async def refresh(layout: RepoLayout, settings: RepoSettings) -> None:
    """Bring what the gitdir includes up to date. Where that fails, git in the mount may lack
    credentials or settings; the mount works all the same."""
    try:
        await trio.to_thread.run_sync(write_settings, layout, settings.uid)
        if layout.gitdir.exists():
            tracked = await tracked_remote(layout.gitdir, settings.remote)
            configuration = await read_configuration(layout.gitdir)
            url = effective_remote(tracked.url or settings.remote, configuration).url
            write = partial(write_own_config, layout.gitdir, url, layout.credentials)
            await trio.to_thread.run_sync(write)
    except (OSError, InvalidInput) as error:
        log.warning("git in the mount may lack settings: %s", error)
