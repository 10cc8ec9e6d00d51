"""Parts of a file, and whether the client has it already (RFC 9110, sections 13 and 14).

The entity tag of a blob is its oid: it names these bytes and no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*")


@dataclass(frozen=True, slots=True)
class Part:
    """What to answer: bytes `start` to `stop` of `size`, with a status."""

    status: int
    start: int
    stop: int
    size: int

    def headers(self, tag: str) -> dict[str, str]:
        """The headers that say what is sent."""
        found = {"ETag": tag, "Accept-Ranges": "bytes"}
        if self.status == 206:
            found["Content-Range"] = f"bytes {self.start}-{self.stop - 1}/{self.size}"
        elif self.status == 416:
            found["Content-Range"] = f"bytes */{self.size}"
        return found


def entity_tag(oid: str) -> str:
    return f'"{oid}"'


def part_of(headers: Mapping[str, str], tag: str, size: int) -> Part:
    """The part of an entity of `size` bytes that a GET with these headers asks for.

    Several ranges at once are answered by the whole, as a server may; so is what is malformed.
    """
    if _lists(headers.get("if-none-match"), tag):
        return Part(304, 0, 0, size)
    match = _RANGE.fullmatch(headers.get("range", ""))
    condition = headers.get("if-range")
    if match is None or match[0].strip() == "bytes=-" or (condition and condition.strip() != tag):
        return Part(200, 0, size, size)
    first, last = match[1], match[2]
    if first and last and int(last) < int(first):
        return Part(200, 0, size, size)
    if first:
        start = int(first)
        stop = min(int(last) + 1, size) if last else size
    else:
        start, stop = max(0, size - int(last)), size
    if start >= stop:
        return Part(416, 0, 0, size)
    return Part(206, start, stop, size)


def _lists(value: str | None, tag: str) -> bool:
    """Whether an If-None-Match names the tag; weak comparison, as that header has it."""
    if value is None:
        return False
    tags = (part.strip().removeprefix("W/") for part in value.split(","))
    return any(each in ("*", tag) for each in tags)
