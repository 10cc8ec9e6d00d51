"""Where a walk through history ends while history is on its way.

The objects that refs, HEAD and what these lead to name, and that are not here. Git comes to a
missing commit only by such a name: as the target of a ref or as a parent of a commit that is here.
So an oid that git looks for in vain and that is none of these is one that it is about to write, or
one that somebody typed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from artifactfs.errors import ArtifactFSError
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.objects.format import parse_commit, tag_target
from artifactfs.git.repository.gitdir import read_shallow
from artifactfs.git.repository.refs import read_head, read_refs

MAX_STEPS = 20_000
"""Objects that are looked at: before history is here there are few, at 10 µs each."""


class Frontier:
    """The oids that are named and not here, as of the packs that are in the gitdir."""

    def __init__(self, gitdir: Path, odb: ObjectDatabase) -> None:
        self._gitdir = gitdir
        self._odb = odb
        self._packs_ns: int | None = None
        self._oids: frozenset[Oid] = frozenset()

    def oids(self) -> frozenset[Oid]:
        """Looked for again when packs came. Blocks on the disk: 50,000 refs take 0.2 s."""
        packs_ns = os.stat(self._gitdir / "objects" / "pack").st_mtime_ns
        if packs_ns != self._packs_ns:
            self._odb.refresh()
            self._oids = frozenset(self._walk())
            self._packs_ns = packs_ns
        return self._oids

    def _walk(self) -> set[Oid]:
        named = set(read_refs(self._gitdir).values())
        with suppress(ArtifactFSError):
            head = read_head(self._gitdir).commit
            if head is not None:
                named.add(head)
        shallow = read_shallow(self._gitdir)
        absent: set[Oid] = set()
        seen = set(named)
        steps = 0
        while named and steps < MAX_STEPS:
            missing = set(self._odb.missing(named))
            absent |= missing
            further: set[Oid] = set()
            for oid in named - missing:
                steps += 1
                if oid not in shallow:
                    further.update(_named_by(self._odb, oid))
            named = further - seen
            seen |= named
        return absent


def _named_by(odb: ObjectDatabase, oid: Oid) -> tuple[Oid, ...]:
    """What the commit or tag `oid` leads to in history."""
    try:
        found = odb.read(oid)
        if found is not None and found[0] == "commit":
            return parse_commit(oid, found[1]).parents
        if found is not None and found[0] == "tag":
            return (tag_target(oid, found[1]),)
    except ArtifactFSError:
        pass  # damaged: git will name it
    return ()
