"""The one place that removes secrets, and what acts on a terminal, from text."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<user>[^/@\s'\"]+)@")
_TOKEN = re.compile(r"\bart_v\d_[A-Za-z0-9_]+(?:\?expires=\d+)?")
_HEADER = re.compile(r"(?i)\b(authorization\s*[:=]\s*)(?:(?:basic|bearer)\s+)?[^\s,;'\"]+")
_FIELD = re.compile(r"(?i)\b((?:password|passwd|secret|api_token|access_token)\s*[:=]\s*)\S+")

_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)

MASK = "***"


def redact(text: str) -> str:
    """Return `text` without URL userinfo, Artifacts tokens, Authorization values and passwords.

    The login name of ssh stays: it is no secret, and part of the address.
    """
    text = _USERINFO.sub(_masked, text)
    text = _TOKEN.sub(MASK, text)
    text = _HEADER.sub(rf"\g<1>{MASK}", text)
    return _FIELD.sub(rf"\g<1>{MASK}", text)


def _masked(match: re.Match[str]) -> str:
    if match["scheme"].lower() == "ssh://" and ":" not in match["user"]:
        return match[0]
    return f"{match['scheme']}{MASK}@"


def foreign_text(words: bytes | str) -> str:
    """What a remote or another program said, fit to be part of a message.

    Redacted, without terminal escape sequences and control characters (line feeds stay), so that
    nobody far away writes on the user's terminal.
    """
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    text = _ESCAPE.sub("", text).replace("\r", "\n")
    return redact(_CONTROL.sub("", text).strip())
