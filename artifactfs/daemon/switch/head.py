"""A switch in progress: what is to move, its record for after a crash, and how HEAD moves."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from artifactfs.daemon.switch.target import Goal
from artifactfs.git.command import run_git
from artifactfs.git.index.primed import LockedIndex
from artifactfs.git.repository.refs import Head
from artifactfs.git.surroundings import OWN_FOLDER
from artifactfs.paths import RepoLayout
from artifactfs.system.files import replace_file

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Move:
    """A planned move of HEAD. `advance`: the branch that is checked out goes to the commit,
    else HEAD goes to `goal`."""

    head: Head
    goal: Goal
    advance: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """The record of a switch that has begun: ``STATE/repos/NAME/switch.json``."""

    path: Path

    @classmethod
    def of(cls, layout: RepoLayout) -> Intent:
        return cls(layout.directory / "switch.json")

    def lock_index(self, gitdir: Path, move: Move) -> LockedIndex:
        """Write this, then take ``index.lock``, whose inode it names. Blocks a moment.

        Raises: IndexLocked, OSError.
        """
        file = gitdir / OWN_FOLDER / "switch.lock"
        file.unlink(missing_ok=True)
        file.touch()
        self._write(move, file.stat().st_ino)
        try:
            return LockedIndex(gitdir, file)
        except BaseException:
            self.remove()
            raise

    def _write(self, move: Move, lock: int) -> None:
        head, goal = move.head, move.goal
        text = json.dumps(
            {
                "ref": head.ref,
                "from": head.commit.hex() if head.commit else None,
                "to": goal.commit.hex(),
                "tree": goal.tree.hex(),
                "branch": goal.branch,
                "track": goal.track,
                "shown": goal.shown,
                "advance": move.advance,
                "lock": lock,
            }
        )
        replace_file(self.path, text)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def remove_lock(self, gitdir: Path) -> None:
        """Remove ``index.lock`` if it is the one of the process that wrote this."""
        lock = gitdir / "index.lock"
        with suppress(OSError, ValueError, KeyError):
            if lock.stat().st_ino == json.loads(self.path.read_text())["lock"]:
                lock.unlink()

    def read(self) -> Move | None:
        """What it says, None where it is not readable."""
        try:
            fields = json.loads(self.path.read_text())
            head = Head(fields["ref"], bytes.fromhex(fields["from"]))
            commit, tree = bytes.fromhex(fields["to"]), bytes.fromhex(fields["tree"])
            goal = Goal(commit, tree, fields["branch"], fields["track"], fields["shown"])
            return Move(head, goal, fields["advance"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


async def move_head(gitdir: Path, move: Move) -> None:
    """As git does, with the same words in the reflog. Raises: GitFailed."""
    goal, head = move.goal, move.head
    if move.advance:
        assert head.ref is not None and head.commit is not None
        message = f"pull: Fast-forward to {goal.shown}"
        change = (head.ref, goal.commit.hex(), head.commit.hex())
        await run_git("update-ref", "-m", message, *change, gitdir=gitdir)
        return
    message = f"checkout: moving from {_called(head)} to {goal.shown}"
    if goal.branch is None:
        arguments = ("update-ref", "--no-deref", "-m", message, "HEAD", goal.commit.hex())
        await run_git(*arguments, gitdir=gitdir)
    else:
        if goal.track is not None:
            await run_git("branch", goal.branch, goal.track, gitdir=gitdir)
        branch = f"refs/heads/{goal.branch}"
        await run_git("symbolic-ref", "-m", message, "HEAD", branch, gitdir=gitdir)


def _called(head: Head) -> str:
    """What the reflog calls it."""
    if head.ref is not None:
        return head.ref.removeprefix("refs/heads/")
    return head.commit.hex() if head.commit is not None else ""


def hook_of(gitdir: Path, move: Move) -> tuple[str, ...] | None:
    """The arguments of ``post-checkout`` (githooks(5)), where there may be one. Blocks."""
    if move.advance or not _may_have_hooks(gitdir):
        return None
    old = move.head.commit.hex() if move.head.commit else "0" * 40
    return (old, move.goal.commit.hex(), "1")


def _may_have_hooks(gitdir: Path) -> bool:
    """Asking git costs a process, so only where a hook or ``core.hooksPath`` can be seen."""
    if (gitdir / "hooks" / "post-checkout").exists():
        return True
    for path in (gitdir / "config", Path("~/.gitconfig"), Path("/etc/gitconfig")):
        with suppress(OSError, RuntimeError):  # there may be no home
            if "hookspath" in path.expanduser().read_text(errors="replace").lower():
                return True
    return False
