"""What a check says, and what it is given to look at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from artifactfs.config import RepoSettings
from artifactfs.paths import StateLayout


class Severity(StrEnum):
    """``problem`` makes `artifact-fs doctor` exit with 1; the others do not."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a check saw.

    `code` is stable and meant for scripts (``fuse.device-missing``); the part before the dot is
    the area. `what` is a sentence for people, `mend` a command (or what to do where no command
    can), None where nothing is wrong. `repo` is the repository it is about, if one.
    """

    code: str
    severity: Severity
    what: str
    mend: str | None = None
    repo: str | None = None

    def to_mapping(self) -> dict[str, str | None]:
        return {
            "code": self.code,
            "severity": str(self.severity),
            "what": self.what,
            "mend": self.mend,
            "repo": self.repo,
        }


def ok(code: str, what: str, repo: str | None = None) -> Finding:
    return Finding(code, Severity.OK, what, None, repo)


def note(code: str, what: str, mend: str | None = None, repo: str | None = None) -> Finding:
    return Finding(code, Severity.NOTE, what, mend, repo)


def warning(code: str, what: str, mend: str, repo: str | None = None) -> Finding:
    return Finding(code, Severity.WARNING, what, mend, repo)


def problem(code: str, what: str, mend: str, repo: str | None = None) -> Finding:
    return Finding(code, Severity.PROBLEM, what, mend, repo)


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined: one state root and the repositories its registry lists.

    `repos` is empty where the registry could not be read (a check of its own says so). `deadline_s`
    bounds each wait for a mount, the daemon or a remote. With `deep`, databases and packs are
    read as a whole. `unmounted` names those that were unmounted on purpose. Mount points in `repos`
    are absolute.
    """

    state: StateLayout
    repos: tuple[RepoSettings, ...]
    deadline_s: float
    deep: bool = False
    unmounted: frozenset[str] = frozenset()
