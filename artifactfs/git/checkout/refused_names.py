"""Names of trees that do not get into a working tree.

The rules are git's: ``verify_path`` of its read-cache.c, with ``is_ntfs_dotgit``, ``is_hfs_dotgit``
and ``is_ntfs_dotgitmodules``. What NTFS or HFS+ would take for ``.git`` is refused on Linux as well
where ``core.protectNTFS`` (the default) or ``core.protectHFS`` says so: who checks such a tree out
there runs what the config in that folder names. Git then checks out nothing at all; a mount shows
all else.
"""

from __future__ import annotations

import json
import re
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

NAME_MAX = 255
"""Bytes of a name, of the kernel's VFS and of every file system that git writes to."""

_FILE = "artifactfs/protection.json"
"""In a gitdir."""

CONFIG_KEYS = r"^core\.protect(ntfs|hfs)$"
"""For ``git config --type=bool -z --get-regexp``."""

_NTFS_DOTGIT = re.compile(rb"(\.git|git~1)[ .]*($|[\\:])", re.IGNORECASE | re.DOTALL)
_NTFS_DOTGITMODULES = re.compile(
    rb"(\.gitmodules|gitmod~[1-4]|%b)[ .]*(\Z|:)"
    % b"|".join(b"%b~[1-9][0-9]{%d}" % (b"gi7eba"[:length], 6 - length) for length in range(7)),
    re.IGNORECASE | re.DOTALL,
)
_HFS_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


@dataclass(frozen=True, slots=True)
class Protection:
    """``core.protectNTFS`` and ``core.protectHFS``."""

    ntfs: bool = True
    hfs: bool = False

    @classmethod
    def from_config(cls, printed: bytes) -> Protection:
        """From the output of ``git config`` for `CONFIG_KEYS`."""
        items = (item.partition(b"\n") for item in printed.split(b"\0") if item)
        said = {key.removeprefix(b"core.protect"): value == b"true" for key, _, value in items}
        return cls(ntfs=said.get(b"ntfs", True), hfs=said.get(b"hfs", False))

    @classmethod
    def kept_in(cls, gitdir: Path) -> Protection:
        """What `keep_protection` wrote; git's defaults where there is nothing."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((gitdir / _FILE).read_text()))
        return cls()


GITS_DEFAULT = Protection()


async def keep_protection(gitdir: Path) -> None:
    """Write down what the user's git refuses, at the first mount: what is shown stays as it was.

    Raises: OSError.
    """
    from artifactfs.git.command import GitFailed, run_git  # trio: the index is written without

    if (gitdir / _FILE).exists():
        return
    arguments = ("config", "--type=bool", "-z", "--get-regexp", CONFIG_KEYS)
    try:
        printed = await run_git(*arguments, gitdir=gitdir)
    except GitFailed:  # nothing is set, or a value is no boolean
        printed = b""
    (gitdir / _FILE).parent.mkdir(exist_ok=True)
    (gitdir / _FILE).write_text(json.dumps(asdict(Protection.from_config(printed))))


def is_refused(
    name: bytes, mode: int = stat.S_IFREG, protection: Protection = GITS_DEFAULT
) -> bool:
    """Tell whether `name` must not or cannot appear in a working tree, whatever a tree says.

    A folder ``.git`` (in any case) would be taken for a repository by every git below it, which
    runs what its config names; a ``.gitmodules`` that is a symlink is read from elsewhere; the
    others are no names at all, or longer than the kernel allows.
    """
    if name in (b"", b".", b"..") or b"/" in name or len(name) > NAME_MAX:
        return True
    lower = name.lower()
    is_link = stat.S_ISLNK(mode)
    if lower == b".git" or (is_link and lower == b".gitmodules"):
        return True
    if protection.ntfs:
        if _NTFS_DOTGIT.match(name):
            return True
        if is_link and _NTFS_DOTGITMODULES.match(name):
            return True
    if protection.hfs and not name.isascii():
        seen = _HFS_IGNORED.sub("", name.decode("utf-8", "surrogateescape")).lower()
        return seen == ".git" or (is_link and seen == ".gitmodules")
    return False
