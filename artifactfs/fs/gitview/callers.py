"""Which git command a request comes from."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass

from artifactfs.git.apart import OWN_CHILD
from artifactfs.system.processes import arguments_of, environment_of, parent_of

_WITH_A_VALUE = (
    "-C",
    "-c",
    "--attr-source",
    "--config-env",
    "--exec-path",
    "--git-dir",
    "--list-cmds",
    "--namespace",
    "--shallow-file",
    "--super-prefix",
    "--work-tree",
)
"""Options before the name of the command that may have their value in the next argument."""

_MARK = OWN_CHILD.encode() + b"="
_GENERATIONS = 32
_HEX = re.compile(r"(?:(?<![0-9A-Za-z_])|(?<=-g))[0-9a-f]+(?![0-9A-Za-z_])")
"""An oid or its beginning, also as `git describe` prints it."""


@dataclass(frozen=True, slots=True)
class GitCommand:
    """``git NAME ARGUMENTS``, run by the thread `pid`."""

    pid: int
    name: str
    arguments: tuple[str, ...]

    def directories(self) -> list[str]:
        """Where its arguments may be relative to, likely ones first.

        Git goes to the top of the tree before it reads objects, so it is asked where its shell is.
        """
        found = []
        with suppress(OSError):
            variables = environment_of(self.pid)
            found = [os.fsdecode(v[4:]) for v in variables if v.startswith(b"PWD=/")]
        for pid in (self.parent(), self.pid):
            with suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/cwd"))
        return found

    def is_given(self, oid: str) -> bool:
        """Whether `oid` (40 hex digits) is part of an argument."""
        return any(oid in argument for argument in self.arguments)

    def abbreviations(self, first: str) -> list[str]:
        """What may be short for an oid in its arguments, and begins with the digits `first`."""
        words = (word for argument in self.arguments for word in _HEX.findall(argument))
        return [word for word in words if 4 <= len(word) < 40 and word.startswith(first)]

    def parent(self) -> int:
        """The process that started it; 0 where that cannot be seen."""
        return parent_of(self.pid)


def git_command(pid: int) -> GitCommand | None:
    """The git command that the thread `pid` runs; None where it is no git, or not to be seen."""
    try:
        program, *arguments = arguments_of(pid)
    except OSError:
        return None
    program = os.path.basename(program)
    if program.startswith("git-"):
        return GitCommand(pid, program.removeprefix("git-"), tuple(arguments))
    if program != "git":
        return None
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        at += 2 if arguments[at] in _WITH_A_VALUE else 1
    if at >= len(arguments):
        return None
    return GitCommand(pid, arguments[at], tuple(arguments[at + 1 :]))


def is_own(pid: int) -> bool:
    """Whether the thread `pid` belongs to a program that we have started, or to ourselves."""
    try:
        if any(variable.startswith(_MARK) for variable in environment_of(pid)):
            return True
    except OSError:
        return False  # another user's, or of another PID namespace
    for _ in range(_GENERATIONS):
        if pid == os.getpid():
            return True
        if pid <= 1:
            break
        pid = parent_of(pid)
    return False
