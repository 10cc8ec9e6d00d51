"""The one place that removes secrets from text."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s'\"]+@")
_TOKEN = re.compile(r"\bart_v\d_[A-Za-z0-9_]+(?:\?expires=\d+)?")
_HEADER = re.compile(r"(?i)\b(authorization\s*[:=]\s*)(?:(?:basic|bearer)\s+)?[^\s,;'\"]+")
_FIELD = re.compile(r"(?i)\b((?:password|passwd|secret|api_token|access_token)\s*[:=]\s*)\S+")

MASK = "***"


def redact(text: str) -> str:
    """Return `text` without URL userinfo, Artifacts tokens, Authorization values and passwords."""
    text = _USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    text = _TOKEN.sub(MASK, text)
    text = _HEADER.sub(rf"\g<1>{MASK}", text)
    return _FIELD.sub(rf"\g<1>{MASK}", text)
