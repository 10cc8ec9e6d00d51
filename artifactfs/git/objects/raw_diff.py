"""What git prints of two trees that it compares (git-diff-tree(1), raw output format)."""

from __future__ import annotations

from dataclasses import dataclass

from artifactfs.git.objects.database import Oid

DIFF_TREES = ("diff-tree", "-r", "-z", "--raw", "--no-renames")
"""The command that `blob_changes` reads; two trees follow."""

_NOTHING, _GITLINK = b"000000", b"160000"


@dataclass(frozen=True, slots=True)
class BlobChange:
    """The blobs of one path; None: there is no file."""

    before: Oid | None
    after: Oid | None

    @classmethod
    def of(cls, line: bytes) -> BlobChange:
        """``:MODE MODE OID OID STATUS``."""
        modes = line[1:7], line[8:14]
        oids = line.split(b" ")[2:4]
        before, after = (
            None if mode in (_NOTHING, _GITLINK) else bytes.fromhex(oid.decode("ascii"))
            for mode, oid in zip(modes, oids, strict=True)
        )
        return cls(before, after)


def blob_changes(printed: bytes) -> list[BlobChange]:
    """Of each path that differs, in their order: a line and the path, each with a NUL."""
    return [BlobChange.of(line) for line in printed.split(b"\0")[:-1:2]]
