"""What the calls of a workspace return."""

from __future__ import annotations

from dataclasses import dataclass, field

from artifactfs.errors import ArtifactFSError, StateError


class CommandFailed(ArtifactFSError):
    """A command in a workspace ended with another exit code than 0, or did not end in time."""

    def __init__(self, run: Run) -> None:
        what = f"did not end within {run.seconds:.0f} s" if run.timed_out else "failed"
        super().__init__(f"{run.command} {what} (exit code {run.exit_code})")
        self.run = run


class UnsavedWork(StateError):
    """A workspace was left with work that nobody else has (``on_exit="refuse"``). It is kept."""


@dataclass(frozen=True, slots=True)
class Run:
    """A command that has ended. `exit_code` is 124 where its time was over, and minus the number
    of the signal that ended it. `stdout` and `stderr` are the last `KEPT_CHARACTERS` of each.
    """

    command: str
    exit_code: int
    stdout: str = field(repr=False)
    stderr: str = field(repr=False)
    seconds: float
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class Change:
    """A path that differs from HEAD. `code` is git status's: two letters, ``??`` for a new one."""

    path: str
    code: str

    @property
    def untracked(self) -> bool:
        return self.code == "??"


@dataclass(frozen=True, slots=True)
class Match:
    """A line that `grep` found; lines count from 1."""

    path: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What `push` has sent: `commit` (hex) is at `ref` of the remote now."""

    ref: str
    commit: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a workspace as a commit (hex) on a ref of its own. `parent` was HEAD then."""

    name: str
    ref: str
    commit: str
    parent: str | None
    pushed: bool = False


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What a workspace has and nobody else: paths that differ from HEAD, commits and snapshots
    that were not pushed, stashes."""

    changes: tuple[str, ...] = ()
    commits: int = 0
    snapshots: int = 0
    stashes: int = 0

    def __bool__(self) -> bool:
        return bool(self.changes or self.commits or self.snapshots or self.stashes)

    def __str__(self) -> str:
        counts = (
            (self.commits, "commit"),
            (len(self.changes), "changed path"),
            (self.snapshots, "snapshot"),
            (self.stashes, "stash"),
        )
        parts = [_count(number, what) for number, what in counts if number]
        return " and ".join(parts) if parts else "nothing"


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("sh") else "s"
    return f"{number} {what}{plural if number != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a workspace costs, in bytes: memory of its process alone (PSS), disk of its own, and
    what was received from its remote since it was mounted."""

    memory_bytes: int
    disk_bytes: int
    received_bytes: int
