"""The one place that removes secrets, and what acts on a terminal, from text.

Patterns find what looks like a secret. What a remote is told may look like anything, and a server
may say it again in any message, so the values in use are known here (`remember_secret`) and
removed as they are, and in the forms that they travel in.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from urllib.parse import quote

_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<user>[^/@\s'\"]+)@")
_TOKEN = re.compile(
    r"\b(?:art_v\d_[A-Za-z0-9_]+(?:(?:\?|%3[Ff])expires(?:=|%3[Dd])\d+)?|aft_[0-9a-f]{8,})"
)
_HEADER = re.compile(r"(?i)\b(authorization\s*[:=]\s*)(?:(?:basic|bearer)\s+)?[^\s,;'\"]+")
_SCHEME_WORD = re.compile(
    r"(?i)\b((?:basic|bearer)\s+)(?=\S*[0-9+/=]|\S*(?-i:[a-z][A-Z]))[a-z0-9+/=_.?-]{8,}"
)
_MALFORMED = re.compile(r"(?i)\b((?:https?|ssh|git):/?)[^/@\s'\"]+@(?=[^/\s]*[:/])")
_FIELD = re.compile(r"(?i)\b((?:password|passwd|secret|api_token|access_token)\s*[:=]\s*)\S+")

_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)

MASK = "***"

_SHORTEST = 4
"""A secret of three characters would be masked in half of all words."""
_SHORTEST_PART = 8
"""What is cut off in the middle of a secret leaves at least as much of it to be noticed."""
_MOST_KEPT = 4_000
_in_use: dict[str, None] = {}
"""Every form of the secrets that this process has used, the latest last."""


def remember_secret(secret: str | None, username: str | None = None) -> None:
    """Mask `secret` in all text from now on, also percent-encoded, in base64 (with `username`, as
    in ``Authorization: Basic``) and as JSON or HTML writes it. For any thread."""
    if secret is None or len(secret) < _SHORTEST:
        return
    raw = secret.encode("utf-8", "surrogateescape")
    forms = {
        secret,
        quote(raw, safe=""),
        quote(raw, safe="").lower(),
        quote(raw),
        json.dumps(secret)[1:-1],
        html.escape(secret),
        b64encode(raw).decode(),
    }
    before_query = secret.partition("?")[0]
    if len(before_query) > _SHORTEST_PART:
        forms.add(before_query)
    if username is not None:
        pair = username.encode("utf-8", "surrogateescape") + b":" + raw
        forms.add(b64encode(pair).decode())
    for form in forms:
        _in_use.pop(form, None)
        _in_use[form] = None
    while len(_in_use) > _MOST_KEPT:
        del _in_use[next(iter(_in_use))]


def forget_secrets() -> None:
    """Mask none of them any more: for tests, which share one process."""
    _in_use.clear()


def _without_used(text: str) -> str:
    for secret in sorted(_in_use, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def _without_parts(text: str) -> str:
    """Without the beginning of a secret at the end of `text`, or its end at the beginning: what
    was said was cut there."""
    for secret in tuple(_in_use):
        for length in range(len(secret) - 1, _SHORTEST_PART - 1, -1):
            if text.endswith(secret[:length]):
                text = text[:-length] + MASK
                break
        for length in range(len(secret) - 1, _SHORTEST_PART - 1, -1):
            if text.startswith(secret[-length:]):
                text = MASK + text[length:]
                break
    return text


def redact(text: str) -> str:
    """Return `text` without the secrets in use, URL userinfo, Artifacts tokens, Authorization
    values and passwords.

    The login name of ssh stays: it is no secret, and part of the address.
    """
    text = _without_used(text)
    text = _USERINFO.sub(_masked, text)
    text = _MALFORMED.sub(rf"\g<1>{MASK}@", text)
    text = _SCHEME_WORD.sub(rf"\g<1>{MASK}", text)
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
    return _without_parts(redact(_CONTROL.sub("", text).strip()))
