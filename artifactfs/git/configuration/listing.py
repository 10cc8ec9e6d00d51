"""The user's git configuration, as `git config --list` prints it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.surroundings import Setting, variable

NO_GITDIR = {"GIT_DIR": os.devnull}
"""For a git that is to know the user's configuration alone, whatever folder it runs in."""

_DEADLINE_S = 10.0
_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off", "")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of configuration. `key` has its section and its last part in lower case; `value` is
    None for a key without one; `origin` is the file, where it came from one."""

    key: str
    value: str | None
    origin: str | None = None

    @property
    def variable(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def subsection(self) -> str | None:
        first, last = self.key.find("."), self.key.rfind(".")
        return self.key[first + 1 : last] if first != last else None


@dataclass(frozen=True, slots=True)
class Configuration:
    """Every entry, in the order in which git reads them: the last one wins."""

    entries: tuple[Entry, ...]

    def all(self, key: str) -> list[str]:
        """The values of a key that may have several, those with a value."""
        found = (entry.value for entry in self.entries if entry.key == key)
        return [value for value in found if value is not None]

    def last(self, key: str) -> str | None:
        """The value that counts; None where there is none."""
        return next(iter(self.all(key)[-1:]), None)

    def section(self, name: str) -> Iterator[Entry]:
        """The entries of a section and of its subsections."""
        return (entry for entry in self.entries if entry.key.startswith(f"{name}."))


async def read_configuration(
    gitdir: Path | None = None, *, more: tuple[Setting, ...] = ()
) -> Configuration:
    """All of it, that of `gitdir` too. Takes a git process. Raises: InvalidInput where git does
    not understand a file of it."""
    try:
        output = await run_git(
            *("config", "--list", "-z", "--show-origin", "--includes"),
            gitdir=gitdir,
            env=None if gitdir else NO_GITDIR,
            more=more,
            deadline_s=_DEADLINE_S,
        )
    except GitFailed as error:
        raise InvalidInput(
            f"git cannot read its configuration: {error.message}", hint="git config --list"
        ) from error
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    pairs = zip(fields[::2], fields[1::2], strict=False)
    return Configuration(tuple(_entry(origin, text) for origin, text in pairs))


def _entry(origin: str, text: str) -> Entry:
    key, newline, value = text.partition("\n")
    file = origin.removeprefix("file:") if origin.startswith("file:") else None
    return Entry(key, value if newline else None, file)


async def http_settings(url: str, gitdir: Path | None = None) -> dict[str, str | None]:
    """The ``http.*`` entry that applies to `url` of each key, by the longest match of
    ``http.<url>.*``. Takes a git process."""
    try:
        output = await run_git(
            *("config", "-z", "--get-urlmatch", "http", url),
            gitdir=gitdir,
            env=None if gitdir else NO_GITDIR,
            deadline_s=_DEADLINE_S,
        )
    except GitFailed:
        return {}
    text = output.decode("utf-8", "surrogateescape")
    entries = (_entry("", field) for field in text.split("\0") if field)
    return {entry.key: entry.value for entry in entries}


def as_bool(value: str | None) -> bool | None:
    """A value of type bool (git-config(1)); None for what git would refuse."""
    if value is None or value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    number = value.lstrip("+-")
    if number[-1:].lower() in ("k", "m", "g"):
        number = number[:-1]
    return bool(int(number)) if number.isascii() and number.isdigit() else None


def as_path(value: str) -> str | None:
    """A value of type pathname, with ``~`` and ``~user``; None for the rarer forms."""
    if value.startswith(("%(", ":(")):
        return None
    if not value.startswith("~"):
        return value
    if value == "~" or value.startswith("~/"):
        home = variable("HOME")
        return home + value[1:] if home else None
    return os.path.expanduser(value)
