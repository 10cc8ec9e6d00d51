"""Git's patterns (``wildmatch.c``) as regular expressions over bytes.

A pattern without a slash is matched against the last part of a path, where ``*`` matches anything;
one with a slash against the path from the directory of its file, where ``*``, ``?`` and brackets
stop at slashes and ``**`` between slashes does not. A malformed pattern matches nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise

_SPECIAL = re.compile(rb"[*?\[\\]")
_NEVER = re.compile(rb"(?!)")
_CLASSES = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"!-~",
    b"lower": rb"a-z",
    b"print": rb" -~",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb" \t\n\v\f\r",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}


def has_wildcards(pattern: bytes) -> bool:
    """Whether any byte of `pattern` stands for something else than itself."""
    return _SPECIAL.search(pattern) is not None


def compile_name(pattern: bytes) -> re.Pattern[bytes]:
    """For the last part of a path; use `fullmatch`."""
    return _compile(pattern, b"", slashes=True)


def compile_path(pattern: bytes) -> re.Pattern[bytes]:
    """For a path without a leading slash; use `fullmatch`.

    Git compares what precedes the first wildcard as plain bytes and matches only the rest as a
    pattern, so that ``**`` counts as standing at a start there.
    """
    first = _SPECIAL.search(pattern)
    plain = first.start() if first is not None else len(pattern)
    return _compile(pattern[plain:], pattern[:plain], slashes=False)


def _compile(pattern: bytes, plain: bytes, *, slashes: bool) -> re.Pattern[bytes]:
    body = _translate(pattern, slashes)
    return _NEVER if body is None else re.compile(re.escape(plain) + body, re.DOTALL)


def _translate(pattern: bytes, slashes: bool) -> bytes | None:
    """The expression for `pattern`; `slashes`: wildcards match them. None: malformed."""
    out: list[bytes] = []
    groups: list[tuple[int, bool]] = []
    one = b"." if slashes else b"[^/]"
    at, end = 0, len(pattern)
    while at < end:
        char = pattern[at : at + 1]
        if char == b"*":
            stars = at
            while pattern[at : at + 1] == b"*":
                at += 1
            piece, at = _stars(pattern, stars, at, slashes)
            groups.append((len(out), not slashes and not piece.startswith(b"[^/]")))
            out.append(piece)
            continue
        at += 1
        if char == b"?":
            out.append(one)
        elif char == b"[":
            found = _bracket(pattern, at, slashes)
            if found is None:
                return None
            piece, at = found
            out.append(piece)
        elif char == b"\\":
            if at == end:
                return None
            out.append(re.escape(pattern[at : at + 1]))
            at += 1
        else:
            out.append(re.escape(char))
    return _atomic(out, groups)


def _atomic(pieces: list[bytes], asterisks: list[tuple[int, bool]]) -> bytes:
    """Join `pieces` so that no pattern of a stranger takes exponential time.

    `asterisks` are (where in `pieces`, whether it passes slashes). What stands between two of them
    has one length, so its first place is as good as any other, and nothing is gained by trying
    the next: it is an atomic group (``(?>…)``). What follows ``**`` goes on to the next ``**``,
    with groups of its own. The last of each kind is none, since it has to end where the path does.
    """
    out = list(pieces)
    for wide in (False, True):
        mine = [place for place, passes in asterisks if passes == wide]
        for place, following in pairwise(mine):
            ends = [place for place, passes in asterisks if passes] if not wide else []
            end = min([following, *(at for at in ends if at > place)])
            out[place] = b"(?>" + out[place]
            out[end - 1] += b")"
    return b"".join(out)


def _stars(pattern: bytes, start: int, end: int, slashes: bool) -> tuple[bytes, int]:
    """The asterisks from `start` to `end`, and where to go on."""
    if slashes:
        return b".*?", end
    alone = end - start == 1
    rest = pattern[end:]
    between = (start == 0 or pattern[start - 1 : start] == b"/") and (
        not rest or rest.startswith((b"/", b"\\/"))
    )
    if alone or not between:
        return b"[^/]*?", end
    if rest.startswith(b"/"):
        return b"(?:.*?/)??", end + 1
    return b".*?", end


def _bracket(pattern: bytes, at: int, slashes: bool) -> tuple[bytes, int] | None:
    """A bracket expression whose ``[`` stands before `at`; None: it has no end."""
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: list[bytes] = []
    previous: int | None = None
    first = True
    while True:
        char = pattern[at : at + 1]
        if not char:
            return None
        if char == b"]" and not first:
            break
        first = False
        if char == b"[" and pattern[at + 1 : at + 2] == b":":
            close = pattern.find(b"]", at + 2)
            if close < 0:
                return None
            if close > at + 2 and pattern[close - 1 : close] == b":":
                named = _CLASSES.get(pattern[at + 2 : close - 1])
                if named is None:
                    return None
                members.append(named)
                at, previous = close + 1, None
                continue
        following = pattern[at + 1 : at + 2]
        if char == b"-" and previous is not None and following not in (b"", b"]"):
            last, at = _escaped(pattern, at + 1)
            if last is None:
                return None
            if previous <= last:
                members.append(_byte(previous) + b"-" + _byte(last))
            previous = None
            continue
        literal, at = _escaped(pattern, at)
        if literal is None:
            return None
        members.append(_byte(literal))
        previous = literal
    inner = b"".join(members)
    slash = b"" if slashes else b"(?!/)"
    if not inner:
        return (b"." if negated else b"(?!)", at + 1)
    return slash + (b"[^" if negated else b"[") + inner + b"]", at + 1


def _escaped(pattern: bytes, at: int) -> tuple[int | None, int]:
    """The byte at `at`, behind a backslash if there is one; None: the pattern ends there."""
    if pattern[at : at + 1] == b"\\":
        at += 1
    return (pattern[at], at + 1) if at < len(pattern) else (None, at)


def _byte(value: int) -> bytes:
    return b"\\x%02x" % value
