"""Damage that was found on the disk, and what to do about it.

Each process that serves a mount has one `DamageReport`. Whoever meets a file that is missing, cut
or changed tells it once: it becomes a line of the log, a part of ``status``, and by that a finding
of ``artifact-fs doctor``. What a reader gets is the business of who met it: EIO, never wrong bytes.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

KEPT = 100
"""Entries of a report; what is found beyond is in the log alone."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged file. `mended`: nothing is left to do, and `mend` says what was done."""

    file: str
    what: str
    mend: str
    mended: bool = False


class DamageReport:
    """What one process has found. For any thread."""

    def __init__(self, repo: str = "") -> None:
        self._repo = repo
        self._found: dict[str, Damage] = {}

    def found(self, file: str | Path, what: str, mend: str) -> None:
        """`file` cannot be trusted: `what` is wrong with it, and `mend` says what to do."""
        self._note(Damage(os.fspath(file), what, mend))

    def mended(self, file: str | Path, what: str, how: str) -> None:
        """The same where nobody has to do anything: it was made anew."""
        self._note(Damage(os.fspath(file), what, how, mended=True))

    def _note(self, damage: Damage) -> None:
        known = self._found.get(damage.file)
        if known == damage:
            return
        level = logging.WARNING if damage.mended else logging.ERROR
        fields = {"repo": self._repo, "file": damage.file, "hint": damage.mend}
        if not self._repo:
            del fields["repo"]
        log.log(level, "%s %s", damage.file, damage.what, extra=fields)
        if known is not None or len(self._found) < KEPT:
            self._found[damage.file] = damage

    def gone(self, file: str | Path) -> None:
        """`file` does not matter any more: it was removed or replaced in the mount."""
        self._found.pop(os.fspath(file), None)

    def __bool__(self) -> bool:
        return bool(self._found)

    def entries(self) -> list[Damage]:
        """In the order in which they were found."""
        return list(self._found.values())

    def as_json(self) -> list[dict[str, object]]:
        return [asdict(damage) for damage in self.entries()]
