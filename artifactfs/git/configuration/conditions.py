"""``includeIf "gitdir:…"`` for a mount: by where the mount is, not by where its gitdir is.

A user has one identity for everything below ``~/work``. Git matches the pattern with the place of
the gitdir, which for a mount is in the state root. So the files that git would include in a clone
in the same place are found here, and the gitdir's own config includes them.

And ``includeIf "hasconfig:remote.*.url:…"``: git meets it where it has the gitdir, `git clone` as
soon as it knows the URL, and our own processes without a gitdir are told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from artifactfs.errors import InvalidInput
from artifactfs.git.checkout.wildmatch import compile_path
from artifactfs.git.configuration.entries import Configuration, Entry, as_path
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.surroundings import Setting

_DEPTH = 10  # as deep as git follows includes
_CONDITIONS = {"gitdir:": False, "gitdir/i:": True}
_OF_REMOTE = "hasconfig:remote.*.url:"


class Included(NamedTuple):
    """Files to include: for the place of the mount, where its gitdir is elsewhere; and for the URL
    of its remote (``hasconfig:``), which git knows where it has the gitdir, and only there."""

    by_place: tuple[str, ...]
    by_remote: tuple[str, ...]
    configuration: Configuration | None
    """The whole configuration with both."""


async def included_for(mount_point: Path, gitdir: Path | None, remote: str) -> Included:
    """The files that a clone of `remote` at `mount_point` would include, and git does not where it
    is told of none, or has a gitdir at `gitdir`.

    Takes git processes: one, and one more for each level of files with conditions in them.
    Returns nothing where git cannot read its configuration: it says so itself.
    """
    by_place: list[str] = []
    by_remote: list[str] = []
    for _ in range(_DEPTH):
        included = (*by_place, *by_remote)
        more: tuple[Setting, ...] = tuple(("include.path", path) for path in included)
        try:
            configuration = await read_configuration(more=more)
        except InvalidInput:
            break
        before = len(included)
        for entry, path in _conditional(configuration):
            if path in by_place or path in by_remote:
                continue
            if _is_of_remote(entry, remote):
                by_remote.append(path)
            elif _is_of_place(entry, mount_point / ".git", gitdir):
                by_place.append(path)
        if len(by_place) + len(by_remote) == before:
            return Included(tuple(by_place), tuple(by_remote), configuration)
    return Included(tuple(by_place), tuple(by_remote), None)


def _conditional(configuration: Configuration) -> Iterator[tuple[Entry, str]]:
    """The conditional includes, and the files that they name."""
    for entry in configuration.section("includeif"):
        path = as_path(entry.value) if entry.variable == "path" and entry.value else None
        if path is not None:
            base = os.path.dirname(entry.origin) if entry.origin else "/"
            yield entry, os.path.abspath(os.path.join(base, path))


def _is_of_remote(entry: Entry, remote: str) -> bool:
    condition = entry.subsection or ""
    pattern = condition.removeprefix(_OF_REMOTE)
    if pattern == condition:
        return False
    return compile_path(os.fsencode(pattern)).fullmatch(os.fsencode(remote)) is not None


def _is_of_place(entry: Entry, place: Path, gitdir: Path | None) -> bool:
    return _matches(entry, place) and not (gitdir is not None and _matches(entry, gitdir))


def _matches(entry: Entry, place: Path) -> bool:
    """Whether a gitdir at `place` meets the condition: git tries its real path, then the path."""
    condition = entry.subsection or ""
    for name, any_case in _CONDITIONS.items():
        if condition.startswith(name):
            pattern = _pattern(condition.removeprefix(name), entry)
            if pattern is None:
                return False
            expression = _expression(pattern, any_case)
            # The mount point itself is ours to serve: only what is above it is looked at.
            above = place.parent.parent.resolve() / place.parent.name / place.name
            return any(
                expression.fullmatch(os.fsencode(path)) is not None for path in (above, place)
            )
    return False


def _pattern(text: str, entry: Entry) -> str | None:
    """The pattern as git prepares it; None where it has no meaning."""
    expanded = as_path(text)
    if expanded is None:
        return None
    if expanded.startswith("./"):
        if entry.origin is None:
            return None
        folder = os.path.dirname(os.path.realpath(entry.origin))
        expanded = re.sub(r"([*?\[\\])", r"\\\1", folder) + expanded[1:]
    elif not expanded.startswith("/"):
        expanded = f"**/{expanded}"
    return f"{expanded}**" if expanded.endswith("/") else expanded


def _expression(pattern: str, any_case: bool) -> re.Pattern[bytes]:
    compiled = compile_path(os.fsencode(pattern))
    return re.compile(compiled.pattern, compiled.flags | re.IGNORECASE) if any_case else compiled
