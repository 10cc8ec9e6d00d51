"""The table of mounts, proc_pid_mountinfo(5). Looking at it never blocks and touches no mount."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount. For FUSE, `minor` is the number of the connection."""

    mount_point: str
    fs_type: str
    source: str
    major: int
    minor: int

    @property
    def is_fuse(self) -> bool:
        return self.fs_type == "fuse" or self.fs_type.startswith("fuse.")


def read_mountinfo() -> list[MountEntry]:
    """The mounts that this process sees, in their order: of several at one path the last covers
    the others."""
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def file_system_of(path: Path) -> str:
    """The kind (``ext4``, ``nfs4``…) of the file system that holds the existing `path`."""
    resolved = path.resolve()
    holding = [e for e in read_mountinfo() if resolved.is_relative_to(e.mount_point)]
    if not holding:
        return "unknown"
    longest = max(len(entry.mount_point) for entry in holding)
    return [entry for entry in holding if len(entry.mount_point) == longest][-1].fs_type


def parse_mountinfo(text: str) -> list[MountEntry]:
    """The same of the text of such a file."""
    entries = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(tail) < 2:
            continue
        major, _, minor = fields[2].partition(":")
        device = int(major), int(minor)
        entries.append(MountEntry(_unescape(fields[4]), tail[0], _unescape(tail[1]), *device))
    return entries


def _unescape(text: str) -> str:
    """Undo the octal escapes (``\\040`` for a space) of mountinfo."""
    if "\\" not in text:
        return text
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
