"""``includeIf "gitdir:…"`` for a mount: by where the mount is, not by where its gitdir is.

A user has one identity for everything below ``~/work``. Git matches the pattern with the place of
the gitdir, which for a mount is in the state root. So the files that git would include in a clone
in the same place are found here, and the gitdir's own config includes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from artifactfs.errors import InvalidInput
from artifactfs.git.checkout.wildmatch import compile_path
from artifactfs.git.configuration.entries import Configuration, Entry, as_path
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.surroundings import Setting

_DEPTH = 10  # as deep as git follows includes
_CONDITIONS = {"gitdir:": False, "gitdir/i:": True}


async def included_for(
    mount_point: Path, gitdir: Path | None
) -> tuple[tuple[str, ...], Configuration | None]:
    """The files that a clone at `mount_point` would include and a gitdir at `gitdir` does not; and
    the whole configuration with them.

    Takes git processes: one, and one more for each level of files with conditions in them.
    Returns nothing where git cannot read its configuration: it says so itself.
    """
    found: list[str] = []
    for _ in range(_DEPTH):
        more: tuple[Setting, ...] = tuple(("include.path", path) for path in found)
        try:
            configuration = await read_configuration(more=more)
        except InvalidInput:
            break
        matching = _matching(configuration, mount_point / ".git", gitdir)
        new = [path for path in matching if path not in found]
        if not new:
            return tuple(found), configuration
        found += new
    return tuple(found), None


def _matching(configuration: Configuration, place: Path, gitdir: Path | None) -> Iterator[str]:
    for entry in configuration.section("includeif"):
        if entry.variable != "path" or not entry.value:
            continue
        matches = _matches(entry, place) and not (gitdir and _matches(entry, gitdir))
        path = as_path(entry.value)
        if matches and path is not None:
            base = os.path.dirname(entry.origin) if entry.origin else "/"
            yield os.path.abspath(os.path.join(base, path))


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
