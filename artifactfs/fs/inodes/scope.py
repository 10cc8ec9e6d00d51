"""The scope of a directory: which attribute files bear on what lies in it."""

from __future__ import annotations

from dataclasses import dataclass

from artifactfs.git.objects.database import Oid

AttributeFile = tuple[bytes, Oid]
"""The directory that a .gitattributes lies in, and its content."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What bears on the files of one directory: attribute files, the root's first."""

    path: bytes
    files: tuple[AttributeFile, ...] = ()

    def file_path(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name


PLAIN = Scope(b"(plain)")
"""Nothing is converted there."""
