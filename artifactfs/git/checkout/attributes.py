"""Git's attributes: what .gitattributes files say of a path (gitattributes(5), ``attr.c``).

`parse` reads one file, `Attributes` puts those that bear on one directory in order and answers for
the files in it. Kept are only the attributes asked for, and the macros that may set them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from artifactfs.git.checkout.wildmatch import compile_name, compile_path, has_wildcards

Value = bytes | bool | None
"""Of an attribute: set to a string, set, unset, or (None) said to be unspecified."""

FILE_NAME = b".gitattributes"

_BLANK = b" \t\r\n"
_WORDS = re.compile(rb"[^ \t\r\n]+")
_NAME = re.compile(rb"[A-Za-z0-9._][-A-Za-z0-9._]*")
_MACRO = b"[attr]"
_MAX_LINE = 2048
_MAX_FILE = 100 << 20
_ESCAPES = {
    b"a": 7,
    b"b": 8,
    b"f": 12,
    b"n": 10,
    b"r": 13,
    b"t": 9,
    b"v": 11,
    b"\\": 92,
    b'"': 34,
}


@dataclass(frozen=True, slots=True)
class AttributeLine:
    """A line: for the paths of `pattern`, or what the macro `macro` stands for."""

    states: tuple[tuple[bytes, Value], ...]
    """(attribute, value) in the order of the line: a later one wins."""
    pattern: bytes = b""
    macro: bytes | None = None


BUILTIN = (AttributeLine(((b"diff", False), (b"merge", False), (b"text", False)), macro=b"binary"),)


def parse(content: bytes, *, macros: bool, is_file: bool = False) -> tuple[AttributeLine, ...]:
    """The lines of one file; as git does, those that are malformed are left out.

    `macros`: it may define some (all but the .gitattributes of subdirectories may). `is_file`: it
    is a file outside of the tree, where git skips a byte order mark.
    """
    if len(content) >= _MAX_FILE:
        return ()
    if is_file:
        content = content.removeprefix(b"\xef\xbb\xbf")
    lines = (_parse_line(line, macros) for line in content.partition(b"\0")[0].split(b"\n"))
    return tuple(line for line in lines if line is not None)


def _parse_line(line: bytes, macros: bool) -> AttributeLine | None:
    text = line.lstrip(_BLANK)
    if not text or text.startswith(b"#") or len(line) >= _MAX_LINE:
        return None
    unquoted = _unquote(text) if text.startswith(b'"') else None
    if unquoted is not None:
        pattern, rest = unquoted
    else:
        first = _WORDS.match(text)
        assert first is not None
        pattern, rest = first[0], text[first.end() :]
    is_macro = len(pattern) > len(_MACRO) and pattern.startswith(_MACRO)
    if is_macro:
        pattern = pattern[len(_MACRO) :].lstrip(_BLANK)
        if not macros or not _NAME.fullmatch(pattern):
            return None
    elif pattern.startswith(b"!"):
        return None
    states = [_parse_state(word) for word in _WORDS.findall(rest)]
    valid = tuple(state for state in states if state is not None)
    if len(valid) < len(states):
        return None
    return AttributeLine(valid, macro=pattern) if is_macro else AttributeLine(valid, pattern)


def _parse_state(word: bytes) -> tuple[bytes, Value] | None:
    name, equals, value = word.partition(b"=")
    prefix = name[:1] if name[:1] in (b"-", b"!") else b""
    name = name[len(prefix) :]
    if not _NAME.fullmatch(name) or name.startswith(b"builtin_"):
        return None
    if prefix:
        return name, False if prefix == b"-" else None
    return name, value if equals else True


def _unquote(text: bytes) -> tuple[bytes, bytes] | None:
    """A name in C quotes, and what follows it; None where it is malformed."""
    out = bytearray()
    at = 1
    while at < len(text):
        char = text[at : at + 1]
        at += 1
        if char == b'"':
            return bytes(out), text[at:]
        if char != b"\\":
            out += char
            continue
        escape = text[at : at + 1]
        if escape in _ESCAPES:
            out.append(_ESCAPES[escape])
            at += 1
        elif re.fullmatch(rb"[0-3][0-7]{2}", octal := text[at : at + 3]):
            out.append(int(octal, 8))
            at += 3
        else:
            return None
    return None


@dataclass(frozen=True, slots=True)
class Source:
    """The lines of one file, and the directory (no slash at its end) they are about."""

    directory: bytes
    lines: tuple[AttributeLine, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    matches: Callable[[bytes, bytes], bool]  # of (path, its last part)
    states: tuple[tuple[bytes, Value], ...]  # the last of the line first: the first one wins
    by_path: bool


class Attributes:
    """What the files of `sources` say, least important first, of the attributes `names`."""

    def __init__(self, sources: Sequence[Source], names: Iterable[bytes]) -> None:
        self._names = frozenset(names)
        self._macros = _macros(sources)
        kept = self._names | {name for name in self._macros if self._bears(name, set())}
        self._rules: list[_Rule] = []
        for source in reversed(sources):
            for line in reversed(source.lines):
                states = tuple(state for state in reversed(line.states) if state[0] in kept)
                if line.macro is None and states and not line.pattern.endswith(b"/"):
                    matches = _matcher(line.pattern, source.directory)
                    self._rules.append(_Rule(matches, states, b"/" in line.pattern))

    def _bears(self, macro: bytes, seen: set[bytes]) -> bool:
        """Whether `macro` may set one of the names."""
        seen.add(macro)
        for name, _ in self._macros[macro]:
            if name in self._names:
                return True
            if name in self._macros and name not in seen and self._bears(name, seen):
                return True
        return False

    @property
    def by_path(self) -> bool:
        """Whether any pattern looks at more than the last part of a path."""
        return any(rule.by_path for rule in self._rules)

    def values(self) -> dict[bytes, set[Value]]:
        """For each attribute every value that some path may have."""
        found: dict[bytes, set[Value]] = {name: set() for name in self._names}
        bodies = [rule.states for rule in self._rules] if self._rules else []
        if bodies:
            bodies += self._macros.values()
        for states in bodies:
            for name, value in states:
                if name in found:
                    found[name].add(value)
        return found

    def lookup(self, path: bytes) -> Mapping[bytes, Value]:
        """What is said of the file `path`; an attribute of which nothing is said is left out."""
        said: dict[bytes, Value] = {}
        name = path[path.rfind(b"/") + 1 :]
        for rule in self._rules:
            if rule.matches(path, name):
                self._fill(said, rule.states)
        return said

    def _fill(self, said: dict[bytes, Value], states: Iterable[tuple[bytes, Value]]) -> None:
        for name, value in states:
            if name not in said:
                said[name] = value
                if value is True and name in self._macros:
                    self._fill(said, self._macros[name])


def _macros(sources: Sequence[Source]) -> dict[bytes, tuple[tuple[bytes, Value], ...]]:
    """What each macro stands for, the last state of its line first."""
    lines = [*BUILTIN, *(line for source in sources for line in source.lines)]
    return {line.macro: tuple(reversed(line.states)) for line in lines if line.macro is not None}


@lru_cache(maxsize=4096)
def _matcher(pattern: bytes, directory: bytes) -> Callable[[bytes, bytes], bool]:
    if b"/" not in pattern:
        return _name_matcher(pattern)
    prefix = directory + b"/" if directory else b""
    pattern = pattern.removeprefix(b"/")
    if not has_wildcards(pattern):
        whole = prefix + pattern
        return lambda path, name: path == whole
    fullmatch, start = compile_path(pattern).fullmatch, len(prefix)
    return lambda path, name: path.startswith(prefix) and fullmatch(path, start) is not None


def _name_matcher(pattern: bytes) -> Callable[[bytes, bytes], bool]:
    if not has_wildcards(pattern):
        return lambda path, name: name == pattern
    suffix = pattern[1:]
    if pattern.startswith(b"*") and not has_wildcards(suffix):
        return lambda path, name: name.endswith(suffix)
    fullmatch = compile_name(pattern).fullmatch
    return lambda path, name: fullmatch(name) is not None
