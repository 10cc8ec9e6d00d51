"""Whether Git's attributes convert a file on its way into the repository (gitattributes(5)).

Only as much as the untracked cache of the primed index needs: for a .gitignore that would be
converted (``* text=auto``) git takes another hash than its oid. A wrong answer costs git time,
never correctness, so macros of the user and unusual patterns are not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from posixpath import basename

_TEXT = ("text", "eol", "crlf")
_OTHERS = ("ident", "filter", "working-tree-encoding")


def converts(path: bytes, files: Sequence[tuple[bytes, bytes]], *, autocrlf: bool) -> bool:
    """Whether the file `path` would be converted.

    `files` are the attribute files that apply, the root's first, as (directory, content);
    `autocrlf` tells whether ``core.autocrlf`` is true or input.
    """
    states: dict[str, str] = {}
    for directory, content in files:
        relative = path[len(directory) + 1 :] if directory else path
        for line in content.decode("utf-8", "replace").splitlines():
            words = line.split()
            if words and _matches(words[0], relative.decode("utf-8", "replace")):
                for word in words[1:]:
                    _apply(word, states)
    if any(states.get(name, "unset") not in ("unset", "unspecified") for name in _OTHERS):
        return True
    text = {
        name: states[name] for name in _TEXT if states.get(name, "unspecified") != "unspecified"
    }
    if text.get("text") == "unset" or text == {"crlf": "unset"}:
        return False
    return bool(text) or autocrlf


def _matches(pattern: str, path: str) -> bool:
    if pattern.startswith(("#", "[attr]", "!")):
        return False
    pattern = pattern.removeprefix("**/")
    if "/" in pattern:
        return fnmatchcase(path, pattern.removeprefix("/"))
    return fnmatchcase(basename(path), pattern)


def _apply(word: str, states: dict[str, str]) -> None:
    if word == "binary":
        states["text"] = "unset"
    elif word.startswith("-"):
        states[word[1:]] = "unset"
    elif word.startswith("!"):
        states[word[1:]] = "unspecified"
    else:
        name, equals, value = word.partition("=")
        states[name] = value if equals else "set"
