"""Who takes the writes of a repository, the kernel or our own mount, and why.

What is there decides: what was written lies in one place or the other. A new repository gets what
was asked for; ``auto`` takes the kernel where a trial mount works. Where the feature is switched
off, none has the kernel, whatever was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.messages import Message
from artifactfs.daemon.host import overlayfs
from artifactfs.errors import InvalidInput, MountError
from artifactfs.features import VARIABLE, disabled_features
from artifactfs.fs.native.writes import is_native, lost
from artifactfs.fs.overlay.database import is_missing, missing
from artifactfs.paths import RepoLayout, StateLayout

KINDS = ("auto", "kernel", "fuse")


@dataclass(frozen=True, slots=True)
class Kind:
    """`why` is a clause for people. `moves`: what was written is still to be brought over."""

    native: bool
    why: str
    moves: bool = False

    @property
    def name(self) -> str:
        return "kernel" if self.native else "fuse"

    def as_json(self) -> Message:
        return {"kind": self.name, "why": self.why}


def decide(state: StateLayout, layout: RepoLayout, settings: RepoSettings) -> Kind:
    """By what is kept and what is asked for. Tries a mount where that matters: blocks.

    Raises: MountError, InvalidInput, StateError.
    """
    kept = _kept(layout)
    if "kernel-writes" in disabled_features():
        return Kind(False, f"switched off by {VARIABLE}", kept is not None and kept.native)
    if kept is not None and settings.writes in ("auto", kept.name):
        if kept.native and (unsuitable := unsuited(settings)) is not None:
            raise InvalidInput(f"the kernel cannot take the writes: {unsuitable}", hint=_HINT)
        return kept  # whether the kernel still can is seen when it is to mount
    moves = kept is not None
    if settings.writes == "fuse":
        return Kind(False, "as asked for", moves)
    if settings.writes == "kernel":
        _require(state, settings)
        return Kind(True, "as asked for", moves)
    why_not = unsuited(settings) or overlayfs.why_not(state.root)
    if why_not is not None:
        return Kind(False, why_not)
    return Kind(True, "the kernel can")


def _kept(layout: RepoLayout) -> Kind | None:
    """Raises: StateError where nobody can tell."""
    if (error := lost(layout)) is not None:
        raise error
    if is_native(layout):
        return Kind(True, "what was written is there")
    if layout.overlay_db.exists():
        return Kind(False, "what was written is there")
    if is_missing(layout):
        raise missing(layout)
    return None


def _require(state: StateLayout, settings: RepoSettings) -> None:
    """Raises: InvalidInput, MountError."""
    unsuitable = unsuited(settings)
    if unsuitable is not None:
        raise InvalidInput(f"the kernel cannot take the writes: {unsuitable}", hint=_HINT)
    why_not = overlayfs.why_not(state.root)
    if why_not is not None:
        raise MountError(f"the kernel cannot take the writes: {why_not}", hint=_HINT)


_HINT = "--writes fuse, with add-repo or remount, goes without"


def unsuited(settings: RepoSettings) -> str | None:
    """Why the kernel cannot have the writes of a repository with these settings, on any machine."""
    if settings.follow is not None:
        return "a tree that follows a branch changes below it (--follow)"
    if settings.uid not in (None, 0):
        return "the tree is another user's than the daemon's (--uid)"
    return None
