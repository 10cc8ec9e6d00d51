"""What makes a mount fast and depends on versions: one table, and whether each of it is on.

A mount is right without any of these; it asks for more. What each needs of the kernel, libfuse,
pyfuse3 and git is looked for at the mount (`Features.learn`), so one that is missing costs only
itself and what builds on it. ``ARTIFACT_FS_DISABLE=NAME,NAME`` switches features off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from artifactfs.errors import InvalidInput

VARIABLE = "ARTIFACT_FS_DISABLE"

Version = tuple[int, int]

# FUSE_CAP_* of libfuse's <fuse_common.h>.
CAP_ATOMIC_O_TRUNC = 1 << 3
CAP_SPLICE_READ = 1 << 9
CAP_AUTO_INVAL_DATA = 1 << 12
CAP_NO_OPEN_SUPPORT = 1 << 17
CAP_PARALLEL_DIROPS = 1 << 18
CAP_HANDLE_KILLPRIV = 1 << 20
CAP_CACHE_SYMLINKS = 1 << 23
CAP_NO_OPENDIR_SUPPORT = 1 << 24
CAP_EXPLICIT_INVAL_DATA = 1 << 25

_OFFERED_ONLY = CAP_NO_OPEN_SUPPORT | CAP_NO_OPENDIR_SUPPORT
"""Said by the kernel only: it is an answer of ENOSYS that makes use of them."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A row of the table. `gives` is what it is good for.

    It is there from these versions of `kernel`, `libfuse`, `pyfuse3` and `git` on, and builds on
    the features `needs`. `capability` (FUSE_CAP_*) is what the kernel and libfuse must offer;
    where that is known, versions of the kernel do not count. `drops` is not wanted with it.
    """

    name: str
    gives: str
    kernel: Version | None = None
    libfuse: Version | None = None
    pyfuse3: Version | None = None
    git: Version | None = None
    needs: tuple[str, ...] = ()
    capability: int = 0
    drops: int = 0
    optional: bool = False
    """Nothing is wrong where something is too old for it."""


FEATURES: tuple[Feature, ...] = (
    Feature(
        "extension",
        "libfuse can be told what the others need",
        libfuse=(3, 10),
        pyfuse3=(3, 4),
    ),
    Feature(
        "kernel-open",
        "the kernel opens, makes and closes files by itself: a warm read sends no request",
        kernel=(3, 16),
        needs=("extension",),
        capability=CAP_NO_OPEN_SUPPORT,
        drops=CAP_ATOMIC_O_TRUNC,  # else the kernel leaves O_TRUNC to an `open` that is not sent
    ),
    Feature(
        "kernel-opendir",
        "the kernel opens directories by itself and keeps listings: a warm find sends no request",
        kernel=(5, 1),
        needs=("extension",),
        capability=CAP_NO_OPENDIR_SUPPORT,
    ),
    Feature(
        "keep-pages",
        "what was written stays in the page cache",
        kernel=(5, 2),
        needs=("extension",),
        capability=CAP_EXPLICIT_INVAL_DATA,
        drops=CAP_AUTO_INVAL_DATA,
    ),
    Feature(
        "parallel-lookups",
        "a look-up that waits does not stop the others in its directory",
        kernel=(4, 7),
        needs=("extension",),
        capability=CAP_PARALLEL_DIROPS,
    ),
    Feature(
        "cached-symlinks",
        "the target of a symbolic link is asked for once",
        kernel=(4, 20),
        libfuse=(3, 10),
        needs=("extension",),
        capability=CAP_CACHE_SYMLINKS,
    ),
    Feature(
        "set-id-bits",
        "nothing is asked before a chown or a write, since we take set-ID bits away",
        kernel=(4, 9),
        libfuse=(3, 13),
        needs=("extension",),
        capability=CAP_HANDLE_KILLPRIV,
    ),
    Feature(
        "request-headers",
        "it is known who reads, and the kernel's number of each request",
        needs=("extension",),
        drops=CAP_SPLICE_READ,  # a request that goes through a pipe is not in memory
    ),
    Feature("fast-loop", "a third of the CPU time for each request", pyfuse3=(3, 4)),
    Feature("kernel-limits", "reads ahead by 1 MB, up to 1,024 background reads at a time"),
    Feature("offered-objects", "git finds the blobs of the tree here, and fetches none by itself"),
    Feature(
        "offered-lookups",
        "look-ups and lists of offered objects take no Python: half the time for each",
        needs=("offered-objects", "request-headers", "fast-loop"),
    ),
    Feature(
        "listings-ahead",
        "a program that walks through the tree finds the next directories listed",
        needs=("extension", "fast-loop"),
    ),
    Feature("fsmonitor", "git status asks what has changed, and looks at no file", git=(2, 30)),
    Feature("fsmonitor-diff", "git diff asks as well", git=(2, 43), needs=("fsmonitor",)),
    Feature("git-folder", ".git is the gitdir itself, a folder as in a clone"),
    Feature("kernel-writes", "what programs write goes to the disk, and not through a process"),
    Feature(
        "fast-looks",
        "git status sees in half the time what has changed",
        needs=("kernel-writes",),
    ),
    Feature(
        "handover",
        "the mount goes on when its process ends: another one takes it over",
        kernel=(6, 9),
        optional=True,
    ),
    Feature(
        "handover-writes",
        "the same where what programs write goes through the process",
        needs=("handover", "request-headers"),
    ),
    Feature("primed-index", "the first git status looks at no file", git=(2, 30)),
)

_KNOWN = {feature.name: feature for feature in FEATURES}


@dataclass(frozen=True, slots=True)
class Found:
    """What was found so far; None: nobody has looked. `capable`: FUSE_CAP_* that are offered."""

    kernel: Version | None = None
    libfuse: Version | None = None
    pyfuse3: Version | None = None
    git: Version | None = None
    capable: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Whether a feature is on, and `why` not. `expected`: somebody wanted it off, this user may not
    have it, or git is older than the one that it is for: nothing is wrong."""

    feature: Feature
    on: bool
    why: str | None = None
    expected: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "on": self.on,
            "why": self.why,
            "expected": self.expected,
            "gives": self.feature.gives,
            "needs": list(self.feature.needs),
        }


def disabled_features(text: str | None = None) -> frozenset[str]:
    """The names in `text`, or in ``$ARTIFACT_FS_DISABLE``. Raises: InvalidInput."""
    text = os.environ.get(VARIABLE, "") if text is None else text
    names = frozenset(name for part in text.split(",") if (name := part.strip()))
    unknown = sorted(names - _KNOWN.keys())
    if unknown:
        raise InvalidInput(
            f"there is no feature {unknown[0]!r} to switch off ({VARIABLE})",
            hint=f"there are {', '.join(_KNOWN)}",
        )
    return names


def version_of(text: str) -> Version:
    """The first ``MAJOR.MINOR`` in `text`; (0, 0) where there is none."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def dotted(version: Version) -> str:
    return ".".join(map(str, version))


class Features:
    """Which features one mount has: what was found at it decides."""

    def __init__(self, disabled: Iterable[str] | None = None) -> None:
        """`disabled` are off; by default those of the environment. Raises: InvalidInput."""
        self._disabled = disabled_features() if disabled is None else frozenset(disabled)
        self._found = Found()
        self._missing: dict[str, str] = {}
        self._expected: set[str] = set()

    def learn(self, **found: Version | int | None) -> None:
        """Take over fields of `Found`."""
        self._found = replace(self._found, **found)  # type: ignore[arg-type]

    def lacks(self, name: str, why: str, *, expected: bool = False) -> None:
        """`name` cannot be: something other than a version is not as it needs it."""
        self._missing.setdefault(name, why)
        if expected:
            self._expected.add(name)

    def on(self, name: str) -> bool:
        return self.states()[name].on

    def states(self) -> Mapping[str, State]:
        """Every feature, in the order of the table."""
        states: dict[str, State] = {}
        for feature in FEATURES:
            off = [states[need] for need in feature.needs if not states[need].on]
            if feature.name in self._disabled:
                state = State(feature, False, f"switched off by {VARIABLE}", expected=True)
            elif off:
                state = State(feature, False, f"needs {off[0].feature.name}", off[0].expected)
            else:
                old = _too_old(feature, self._found)
                why = self._missing.get(feature.name) or (old and old[1])
                expected = feature.name in self._expected or (
                    old is not None and (old[0] == "git" or feature.optional)
                )
                state = State(feature, why is None, why, expected)
            states[feature.name] = state
        return states

    def capabilities(self) -> tuple[int, int]:
        """FUSE_CAP_* to want and not to want: an off feature is not left to libfuse's default."""
        want = drop = 0
        for state in self.states().values():
            if state.on:
                want |= state.feature.capability
                drop |= state.feature.drops
            else:
                drop |= state.feature.capability
        return want & ~_OFFERED_ONLY, drop & ~_OFFERED_ONLY

    def as_json(self) -> dict[str, dict[str, Any]]:
        """By name: ``on``, ``why`` it is off (else null), whether that was ``expected``, what it
        ``gives``, and the features that it ``needs``."""
        return {name: state.as_json() for name, state in self.states().items()}


def _too_old(feature: Feature, found: Found) -> tuple[str, str] | None:
    """What is too old for `feature`, and a sentence about it."""
    offered = found.capable is not None and bool(feature.capability)
    if offered and not found.capable & feature.capability:  # type: ignore[operator]
        return "kernel", "the kernel or libfuse does not offer it"
    for program in ("kernel", "libfuse", "pyfuse3", "git"):
        if program == "kernel" and offered:
            continue
        needed: Version | None = getattr(feature, program)
        there: Version | None = getattr(found, program)
        if needed is not None and there is not None and there < needed:
            return program, f"needs {program} {dotted(needed)}, this is {dotted(there)}"
    return None
