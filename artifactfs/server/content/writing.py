"""Writing and deleting one file of a branch by REST: a commit made by `git fast-import`.

fast-import refuses to move a branch to a commit that does not contain its tip. So of two changes
that began at the same tip one wins, and the other is made again on top of it.
"""

from __future__ import annotations

import logging
import re
import time
import unicodedata
from dataclasses import dataclass

import pygit2
import trio

from artifactfs.server.cluster.fence import fenced
from artifactfs.server.content.objects import Content, NoSuchContent
from artifactfs.server.context import Context
from artifactfs.server.git.process import git_process
from artifactfs.server.git.pushes import note_push, remaining_bytes
from artifactfs.server.git.stream import environment_for, turn
from artifactfs.server.metadata.records import Repo
from artifactfs.server.problems import Code, Problem
from artifactfs.server.wire.push_report import ZERO, RefUpdate

log = logging.getLogger(__name__)

_TIME_S = 30.0
_TRIES = 5
"""How often a change is put on top of what came in between."""
_LOST = re.compile(r"ot updating refs/|cannot lock ref|nable to create '.*\.lock'|cannot update")
_MODES = {"blob": "100644", "exec": "100755"}
_SERVER = ("artifacts-server", "artifacts-server@localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file of a branch. `data` is None to delete it.

    `expected`: the commit that the branch must be at, None if that does not matter.
    """

    branch: str
    path: str
    data: bytes | None
    message: str
    author: tuple[str, str] = _SERVER
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """What is there before: the tip of the branch, the mode and the oid of the file."""

    tip: str | None
    mode: str
    blob: str | None


def check_path(path: str) -> str:
    """Return a path that git takes into a tree on every system. Raises: Problem."""
    parts = path.split("/")
    if len(path.encode("utf-8", "replace")) > 4_096 or not all(_name_is_fine(p) for p in parts):
        raise Problem(Code.INVALID_INPUT, "The path is not valid", pointer="/path")
    return path


def _name_is_fine(name: str) -> bool:
    """No name that is empty, is `.git` in any disguise (fsck's hasDotgit), or leads elsewhere.

    `.gitmodules` is left to pushes: git checks what is in it there.
    """
    kinds = [unicodedata.category(c) for c in name]
    if "Cc" in kinds or "Cs" in kinds or "\\" in name or len(name.encode()) > 255:
        return False
    plain = "".join(c for c, kind in zip(name, kinds, strict=True) if kind != "Cf").casefold()
    plain = plain.partition(":")[0].rstrip(" .")
    return plain not in ("", ".git", ".gitmodules") and not plain.startswith(("git~", "gitmod~"))


def _place(content: Content, change: FileChange) -> _Place:
    """Look before writing. Raises: Problem, NoSuchContent (nothing to delete)."""
    try:
        tip = str(content.commit_id(f"refs/heads/{change.branch}"))
    except NoSuchContent:
        if change.data is None:
            raise
        return _Place(None, "100644", None)
    parts = change.path.split("/")
    for depth in range(1, len(parts) + 1):
        try:
            entry = content.entry_at(tip, "/".join(parts[:depth]))
        except NoSuchContent:
            if change.data is None:
                raise
            return _Place(tip, "100644", None)
        fits = entry.type in _MODES if depth == len(parts) else entry.type == "tree"
        if not fits:
            raise Problem(Code.CONFLICT, f"There is a {entry.type} in the way", pointer="/path")
    return _Place(tip, _MODES[entry.type], entry.hash)


async def write_file(context: Context, repo: Repo, change: FileChange, *, actor: str | None) -> str:
    """Commit a change to its branch; the id of the commit.

    A file that has that content already makes no commit. Raises: Problem, NoSuchContent.
    """
    started = time.perf_counter()
    if repo.read_only:
        raise Problem(Code.CONFLICT, "The repository is read-only")
    if len(change.data or b"") > await remaining_bytes(context, repo):
        raise Problem(Code.STORAGE_LIMIT, "The storage limit is reached")
    gitdir = context.layout.gitdir(repo.id)
    for _ in range(_TRIES):
        place = await trio.to_thread.run_sync(lambda: _place(Content(gitdir), change))
        if change.expected is not None and change.expected != (place.tip or ZERO):
            break
        same = change.data is not None and str(pygit2.hash(change.data)) == place.blob
        if same and place.tip is not None:
            return place.tip
        made = await _fast_import(context, repo, _commands(change, place))
        if made is not None:
            update = RefUpdate(f"refs/heads/{change.branch}", place.tip or ZERO, made)
            ms = (time.perf_counter() - started) * 1000
            await note_push(context, repo, [update], actor=actor, ms=ms)
            return made
    raise Problem(Code.CONFLICT, "The branch is at another commit", pointer="/expected")


def _commands(change: FileChange, place: _Place) -> bytes:
    """git-fast-import(1)."""
    now = int(time.time())
    message = change.message.encode()
    lines = [
        f"commit refs/heads/{change.branch}",
        "mark :1",
        f"author {change.author[0]} <{change.author[1]}> {now} +0000",
        f"committer {_SERVER[0]} <{_SERVER[1]}> {now} +0000",
        f"data {len(message)}",
    ]
    text = "\n".join(lines).encode() + b"\n" + message + b"\n"
    if place.tip is not None:
        text += f"from {place.tip}\n".encode()
    path = '"' + change.path.replace('"', '\\"') + '"'
    if change.data is None:
        text += f"D {path}\n".encode()
    else:
        text += f"M {place.mode} inline {path}\ndata {len(change.data)}\n".encode()
        text += change.data + b"\n"
    return text + b"get-mark :1\ndone\n"


async def _fast_import(context: Context, repo: Repo, commands: bytes) -> str | None:
    """Run fast-import; the id of the commit, None if the branch moved. Raises: Problem."""
    gitdir = context.layout.gitdir(repo.id)
    words = [context.git, f"--git-dir={gitdir}", "fast-import", "--quiet", "--done"]
    output = bytearray()
    with trio.move_on_after(_TIME_S):
        async with turn(context) as mine:
            if not mine:
                raise Problem(Code.BUSY, "Too much to do", retry_after=5)
            # Shielded: once it has begun, the branch moves and the database hears of it.
            deadline = trio.current_time() + _TIME_S
            standing = context.standing
            with trio.CancelScope(shield=True, deadline=deadline), standing.working() as owner:
                async with (
                    context.marks.open(repo.id),
                    fenced(standing, context.layout.hooks, owner) as fence,
                    git_process(
                        words,
                        environment={
                            **environment_for(context, None, dict(fence.settings)),
                            **fence.environment,
                        },
                        memory_bytes=context.limits.git_memory_bytes,
                        descriptors=fence.descriptors,
                    ) as git,
                ):
                    await git.stdin.send_all(commands)
                    await git.stdin.aclose()
                    while data := await git.read():
                        output += data
                    if await git.wait() == 0:
                        return output.split()[0].decode()
                fence.check()
                if _LOST.search(git.stderr):
                    return None
                log.error("git fast-import in %s failed: %s", repo.full_name, git.stderr)
                raise Problem(Code.INTERNAL_ERROR, "The commit could not be made")
    raise Problem(Code.BUSY, "Writing takes too long", retry_after=5)
