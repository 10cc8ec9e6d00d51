"""Lines of git-config(1), read. Needs neither git nor an event loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from artifactfs.git.surroundings import variable

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


def parsed(output: bytes) -> Configuration:
    """What ``git config --list -z --show-origin`` printed."""
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    pairs = zip(fields[::2], fields[1::2], strict=False)
    return Configuration(tuple(parsed_entry(origin, text) for origin, text in pairs))


def parsed_entry(origin: str, text: str) -> Entry:
    """One entry, and where it is from."""
    key, newline, value = text.partition("\n")
    file = origin.removeprefix("file:") if origin.startswith("file:") else None
    return Entry(key, value if newline else None, file)


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
