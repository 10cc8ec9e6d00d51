"""The README of a folder, for the page below its files."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict

import trio
from markupsafe import Markup

from artifactfs.server.content.objects import Blob, Entry
from artifactfs.server.git.process import git_process
from artifactfs.server.web.markdown import Source

log = logging.getLogger(__name__)

README_BYTES = 256 * 1024
_MARKDOWN = re.compile(r"readme\.(md|markdown|mdown)", re.IGNORECASE)
_PLAIN = re.compile(r"readme(\.(txt|rst|adoc|org))?", re.IGNORECASE)
_HTML_BYTES = 4 * 1024 * 1024
_TIME_S = 5.0
_QUEUE_S = 5.0
_MEMORY_BYTES = 512 * 1024 * 1024
_KEPT = 64


def find_readme(entries: Sequence[Entry]) -> Entry | None:
    """The README among the entries of a folder; Markdown before others."""
    files = [entry for entry in entries if entry.type in ("blob", "exec")]
    for names in (_MARKDOWN, _PLAIN):
        for entry in files:
            if names.fullmatch(entry.name):
                return entry
    return None


class Readmes:
    """Makes HTML of READMEs, one at a time, and keeps the last ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str, str], Markup] = OrderedDict()
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def html(self, entry: Entry, blob: Blob, page: str, ref: str, folder: str) -> Markup:
        """A README as HTML; as it is written if it is no Markdown, or takes too long."""
        if blob.data is None:
            return Markup('<p class="empty">Too large to show here.</p>')
        text = blob.data.decode("utf-8", "replace")
        plain = Markup('<pre tabindex="0">{}</pre>').format(text)
        if not _MARKDOWN.fullmatch(entry.name):
            return plain
        key = (blob.hash, page, ref, folder)
        if key not in self._kept:
            with trio.move_on_after(_QUEUE_S) as waiting:
                await self._one_at_a_time.acquire()
            if waiting.cancelled_caught:
                return plain
            try:
                made = await _run(Source(text, page, ref, folder))
            finally:
                self._one_at_a_time.release()
            self._kept[key] = plain if made is None else made
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


async def _run(source: Source) -> Markup | None:
    """None if it takes too long, or too much memory."""
    words = [sys.executable, "-P", "-m", "artifactfs.server.web.markdown"]
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONIOENCODING": "utf-8",
    }
    output = bytearray()
    with trio.move_on_after(_TIME_S):
        async with git_process(words, environment=environment, memory_bytes=_MEMORY_BYTES) as made:
            await made.stdin.send_all(json.dumps(asdict(source)).encode())
            await made.stdin.aclose()
            while len(output) <= _HTML_BYTES and (data := await made.read()):
                output += data
            if len(output) <= _HTML_BYTES and await made.wait() == 0:
                return Markup(output.decode())  # what markdown.py let through
            log.info("a README could not be shown: %s", made.stderr)
    return None
