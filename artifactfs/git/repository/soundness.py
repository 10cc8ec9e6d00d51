"""Looks whether the files of a gitdir are what git needs, without running git and in little time.

Packs are looked at by their ends; git's own index, and those of packs and commits, by their
checksums.
Whoever reads an object compares it with its name in any case; this is to tell people which file is
damaged, and what to do about it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.errors import CorruptData
from artifactfs.git.command import GitFailed
from artifactfs.git.pack.index import PackIndex
from artifactfs.git.pack.index_pack import write_index
from artifactfs.git.repository.refs import symlinked_ref
from artifactfs.git.surroundings import OWN_CONFIG_PATH

_HEX = re.compile(rb"[0-9a-f]{40}")
_SHALLOW = re.compile(rb"([0-9a-f]{40}\n)*")
_HEAD = re.compile(rb"(ref: refs/[^\0-\x20\x7f~^:?*\[\\]+|[0-9a-f]{40})\n?")
_PACKED_REF = re.compile(rb"[0-9a-f]{40} refs/[^\0-\x20\x7f]+|\^[0-9a-f]{40}|#.*|")
_REMOTE_URL = re.compile(rb"^\s*url\s*=\s*\S", re.MULTILINE)
_TRAILER = 20
_VALUE = rb'(?:[^"\\\n]|\\(?:["\\ntb]|\r?\n))'
_CONFIG_ITEM = re.compile(
    rb"""
    [ \t\r\n]*(?:
        [#;][^\n]*
      | \[ [a-zA-Z0-9.-]+ (?:[ \t]+ "(?:[^"\\\n]|\\[^\n])*" )? \]
      | [a-zA-Z][a-zA-Z0-9-]* [ \t]*
        (?: = (?: "%(inside)s*" | (?![#;])%(inside)s )* (?:[#;][^\n]*)? )? \r? (?=\n|\Z)
      | \Z
    )"""
    % {b"inside": _VALUE},
    re.VERBOSE,
)
"""A section's head, a variable or a comment, as git-config(1) has them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One damaged file: what is wrong with it, and what to do."""

    path: Path
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def faults(gitdir: Path) -> Iterator[Fault]:
    """What is wrong with `gitdir`. Reads some files whole: call it in a thread."""
    yield from _head(gitdir)
    yield from _config(gitdir)
    yield from _refs(gitdir)
    yield from _shallow(gitdir)
    yield from _packs(gitdir)
    yield from _derived(gitdir)
    yield from _index(gitdir)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _head(gitdir: Path) -> Iterator[Fault]:
    path = gitdir / "HEAD"
    if symlinked_ref(path) is not None:
        return
    content = _read(path)
    if content is None or not _HEAD.fullmatch(content):
        what = "is missing" if content is None else "names no branch and no commit"
        mend = f"echo 'ref: refs/heads/BRANCH' >{shlex.quote(str(path))}  (what you were on)"
        yield Fault(path, f"{what}: git finds no repository in the mount", mend)


def _config(gitdir: Path) -> Iterator[Fault]:
    path = gitdir / "config"
    content = _read(path)
    if content is None:
        what = "is missing"
    elif (line := malformed_line(content)) is not None:
        what = f"is damaged in line {line}"
    elif not _REMOTE_URL.search(content):
        what = "is damaged: it names no remote"
    else:
        return
    yield Fault(
        path,
        f"{what}: git in the mount cannot fetch",
        "restore it from a backup, or from a fresh clone of the same remote by"
        " `artifact-fs add-repo` under another name (change core.worktree in it)",
    )


def malformed_line(config: bytes) -> int | None:
    """The number of the first line for which git refuses a configuration file."""
    place = 3 if config.startswith(b"\xef\xbb\xbf") else 0  # a byte order mark
    while place < len(config):
        item = _CONFIG_ITEM.match(config, place)
        if item is None or b"\0" in item[0]:
            blank = len(config[place:]) - len(config[place:].lstrip())
            return config.count(b"\n", 0, place + blank) + 1
        place = item.end()
    return None


def drop_damaged_own_config(gitdir: Path) -> list[Fault]:
    """Remove the file of ours that the gitdir's config includes, where git would refuse to work
    for it: it is written anew at each start. Returns what was wrong with it."""
    path = gitdir / OWN_CONFIG_PATH
    line = malformed_line(_read(path) or b"")
    if line is None:
        return []
    path.unlink()
    return [Fault(path, f"was damaged in line {line}", "it was made anew")]


def _refs(gitdir: Path) -> Iterator[Fault]:
    if not (gitdir / "refs").is_dir():
        mend = f"mkdir -p {shlex.quote(str(gitdir / 'refs' / 'heads'))} && {_fetch_refs(gitdir)}"
        yield Fault(gitdir / "refs", "is missing: git finds no repository in the mount", mend)
    packed = gitdir / "packed-refs"
    for number, line in enumerate((_read(packed) or b"").split(b"\n"), 1):
        if not _PACKED_REF.fullmatch(line):
            yield Fault(packed, f"is damaged in line {number}", _fetch_refs(gitdir))
            break
    for path in sorted((gitdir / "refs").rglob("*")):
        if path.suffix == ".lock" or not path.is_file():
            continue
        content = _read(path)
        if content is not None and not _HEAD.fullmatch(content):
            mend = f"rm {shlex.quote(str(path))} && {_fetch_refs(gitdir)}"
            yield Fault(path, "names no commit", mend)


def _shallow(gitdir: Path) -> Iterator[Fault]:
    path = gitdir / "shallow"
    content = _read(path) or b""
    if not _SHALLOW.fullmatch(content):
        git = f"git --git-dir={shlex.quote(str(gitdir))}"
        mend = f"rm {shlex.quote(str(path))} && {git} fetch --depth=1"
        yield Fault(path, "is damaged: it names no commits, and git refuses to work", mend)


def _derived(gitdir: Path) -> Iterator[Fault]:
    """What git has made of its objects to be faster (gitformat-commit-graph(5), gitformat-pack(5)).
    It believes them: a changed commit-graph shows another history."""
    objects = gitdir / "objects"
    graphs = objects / "info" / "commit-graphs"
    for path, drop in (
        (objects / "info" / "commit-graph", None),
        *((path, graphs) for path in sorted(graphs.glob("graph-*.graph"))),
        (objects / "pack" / "multi-pack-index", None),
    ):
        content = _read(path)
        if content is not None and _digest(content[:-_TRAILER]) != content[-_TRAILER:]:
            mend = f"rm -r {shlex.quote(str(drop or path))}  (git works without)"
            yield Fault(path, "is damaged: it does not match its checksum", mend)


def drop_damaged_derived(gitdir: Path) -> list[Fault]:
    """Remove them: git works without, and makes them anew. Returns what was wrong with them."""
    found = []
    for fault in _derived(gitdir):
        path = fault.path
        if path.suffix == ".graph":  # a link of a chain, which is of no use without
            shutil.rmtree(path.parent, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        found.append(Fault(path, "was damaged", "it was removed; git works without, only slower"))
    return found


def _digest(content: bytes) -> bytes:
    return hashlib.sha1(content, usedforsecurity=False).digest()


def _fetch_refs(gitdir: Path) -> str:
    log = shlex.quote(str(gitdir / "logs"))
    return f"git --git-dir={shlex.quote(str(gitdir))} fetch  (commits of yours: see {log})"


def _packs(gitdir: Path) -> Iterator[Fault]:
    folder = gitdir / "objects" / "pack"
    for path in sorted(folder.glob("pack-*.pack")):
        index = path.with_suffix(".idx")
        again = reindex(path)
        if not index.exists():
            yield Fault(index, "is missing: what is in its pack is not found", again)
            continue
        try:
            opened = PackIndex(index)
            opened.check()
        except (CorruptData, OSError):
            yield Fault(index, "is damaged: what is in its pack may not be found", again)
            continue
        if not _ends_with(path, opened.pack_checksum):
            what = "is damaged: it does not end with its checksum"
            yield Fault(path, what, refetch(gitdir, path))
    for index in sorted(folder.glob("pack-*.idx")):
        path = index.with_suffix(".pack")
        if not path.exists():
            yield Fault(path, "is missing: what was in it cannot be read", refetch(gitdir, path))


async def mend_indexes(gitdir: Path, *, deep: bool) -> list[Fault]:
    """Have git make the indexes of packs anew that are missing or malformed; with `deep`, those as
    well whose checksum is wrong, which reads all of them. Returns what was mended.
    """
    mended = []
    for pack, what in await trio.to_thread.run_sync(_without_index, gitdir, deep):
        index = pack.with_suffix(".idx")
        temporary = pack.with_name(f"tmp_idx_{pack.stem}.idx")
        try:
            await write_index(pack, temporary)
            temporary.rename(index)
        except (GitFailed, OSError):  # the pack is damaged, too: `faults` says so
            temporary.unlink(missing_ok=True)
            continue
        mended.append(Fault(index, what, "git has made it anew"))
    return mended


def _without_index(gitdir: Path, deep: bool) -> list[tuple[Path, str]]:
    found = []
    for pack in sorted((gitdir / "objects" / "pack").glob("pack-*.pack")):
        try:
            index = PackIndex(pack.with_suffix(".idx"))
            if deep:
                index.check()
        except FileNotFoundError:
            found.append((pack, "is missing"))
        except (CorruptData, OSError):
            found.append((pack, "is damaged"))
    return found


def refetch(gitdir: Path, pack: Path) -> str:
    """What to do about a damaged pack."""
    stem = shlex.quote(str(pack.with_suffix("")))
    git = f"git --git-dir={shlex.quote(str(gitdir))}"
    return f"rm -f {stem}.*; {git} fetch --all --refetch  (what was pushed is fetched again)"


def reindex(pack: Path) -> str:
    """What to do about a damaged index of a pack."""
    index = shlex.quote(str(pack.with_suffix(".idx")))
    return f"rm -f {index}; git index-pack {shlex.quote(str(pack))}"


def _ends_with(path: Path, checksum: bytes) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PACK":
                return False
            file.seek(-_TRAILER, 2)
            return file.read() == checksum
    except OSError:
        return False


def _index(gitdir: Path) -> Iterator[Fault]:
    path = gitdir / "index"
    content = _read(path)
    if content is None:
        return
    trailer = content[-_TRAILER:]
    sound = content[:4] == b"DIRC" and len(content) > 32
    if sound and trailer != bytes(_TRAILER):
        sound = _digest(content[:-_TRAILER]) == trailer
    if not sound:
        mend = f"rm {shlex.quote(str(path))}, then git reset in the mount  (nothing is staged then)"
        yield Fault(path, "is damaged: it does not match its checksum", mend)
