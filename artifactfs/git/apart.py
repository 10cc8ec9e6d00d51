"""How git processes of ours see a gitdir: all of its objects and refs, and nothing of a mount.

A child of a worker that asks the kernel for something in the worker's mount can wait for ever: the
kernel may hold the lock of that directory for another program until the worker has answered it,
while the worker waits for its child. In D state not even SIGKILL ends such a child. Three ways
lead from a gitdir to its mount: the alternate of the offered objects (`offered`),
``core.worktree``, and ``core.fsmonitor``.

So they get an object directory of their own, ``artifactfs/apart``. Everything in it is a symlink
to what is in ``objects``, except for ``info/alternates``, which it does not have: git is told the
alternates by the environment, without those that lead to a mount (git(1),
GIT_ALTERNATE_OBJECT_DIRECTORIES). The working tree is the folder ``artifactfs``.

Loose objects can be written through it only into folders of ``objects`` that exist; ours write
packs.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from artifactfs.git import surroundings
from artifactfs.git.surroundings import OWN_FOLDER as _OWN_FOLDER

_APART = "apart"
_OFFERED = (_OWN_FOLDER, "offered")
_DEPTH = 5
"""Git follows alternates of alternates so far (object-file.c, `link_alt_odb_entries`)."""

# `git rev-parse --local-env-vars`: what would point git at another repository.
LOCAL_VARIABLES = frozenset(
    (
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_CONFIG",
        "GIT_CONFIG_PARAMETERS",
        "GIT_CONFIG_COUNT",
        "GIT_OBJECT_DIRECTORY",
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_GRAFT_FILE",
        "GIT_INDEX_FILE",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_REPLACE_REF_BASE",
        "GIT_PREFIX",
        "GIT_SHALLOW_FILE",
        "GIT_COMMON_DIR",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_QUARANTINE_PATH",
        "GIT_NAMESPACE",
    )
)
OWN_CHILD = "ARTIFACT_FS_CHILD"
"""Is set in the environment of every git process of ours, and of what it starts: a mount lets none
of them wait for history that is on its way (`artifactfs.fs.gitview.gate`)."""
_NO_FETCH = {
    # Since git 2.44. Older ones start a `git fetch`, to which no protocol is allowed.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
}
"""Git says what is missing, rather than fetch it."""


_OURS: tuple[surroundings.Setting, ...] = (
    # The command of a gitdir may read what it answers in the mount, by its absolute path.
    ("core.fsmonitor", "false"),
    # Indexes of packs are mapped as they are; those of version 1 we would have to convert.
    ("pack.indexVersion", "2"),
)
"""Settings of every process of ours on a gitdir, whatever its user has configured."""


def git_environment(
    extra: Mapping[str, str] | None = None,
    *,
    gitdir: Path | None = None,
    more: tuple[surroundings.Setting, ...] = (),
) -> dict[str, str]:
    """The environment of a git process of ours without a gitdir, and of ssh.

    What was kept for the repository is in it, and `more`, settings for this process alone. A
    `gitdir` whose own config includes the settings that were kept gets them from there: two of a
    kind would be two headers of a request.
    """
    environment = {key: value for key, value in os.environ.items() if key not in LOCAL_VARIABLES}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    environment[OWN_CHILD] = "1"
    environment.pop("SSH_ASKPASS", None)
    kept = surroundings.current()
    included = gitdir is not None and surroundings.included_by(gitdir)
    environment |= kept.environment()
    of_remote = kept.settings_of_remote() if gitdir is None else ()
    settings = (*(() if included else kept.all_settings()), *of_remote, *more)
    environment |= surroundings.settings_environment(settings)
    if extra:
        environment |= extra
    return environment


def gitdir_environment(
    gitdir: Path,
    extra: Mapping[str, str] | None = None,
    *,
    may_fetch: bool = False,
    make: bool = True,
    more: tuple[surroundings.Setting, ...] = (),
) -> dict[str, str]:
    """The environment of a git process that works on `gitdir`, and sees no mount.

    Without `may_fetch` it never asks a remote. `make`: see `environment_apart`. Blocks on the
    disk. Raises: OSError.
    """
    seen = environment_apart(gitdir, make=make)
    if extra and "GIT_OBJECT_DIRECTORY" in extra:
        seen.pop("GIT_ALTERNATE_OBJECT_DIRECTORIES", None)
    fetching = {} if may_fetch else _NO_FETCH
    apart = (*more, *_OURS)
    return git_environment({**seen, **fetching, **(extra or {})}, gitdir=gitdir, more=apart)


def is_offered(directory: Path) -> bool:
    """Whether an object directory is the one that leads to a mount, of whatever gitdir."""
    return directory.parts[-2:] == _OFFERED


def environment_apart(gitdir: Path, *, make: bool = True) -> dict[str, str]:
    """The variables by which git sees the objects of `gitdir`, and no mount.

    Makes the object directory at the first time; without `make`, where there is none, git sees
    the one that everybody sees. Blocks on the disk. Raises: OSError.
    """
    gitdir = gitdir.resolve()
    own = gitdir / _OWN_FOLDER
    found = {}
    if own.is_dir():
        found["GIT_WORK_TREE"] = str(own)
    elif _names_worktree(gitdir):
        found["GIT_WORK_TREE"] = str(gitdir)
    objects = gitdir / "objects"
    if _leads_to_mount(objects, _DEPTH):
        seen = list(dict.fromkeys(_apart(objects, _DEPTH, make=make)))
        found["GIT_OBJECT_DIRECTORY"] = str(seen[0])
        found["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = ":".join(map(quoted, seen[1:]))
    return found


def _names_worktree(gitdir: Path) -> bool:
    """Whether ``core.worktree`` may be set. (A bare repository must not be given one.)"""
    try:
        return b"worktree" in (gitdir / "config").read_bytes().lower()
    except OSError:
        return False


def make_apart(gitdir: Path) -> Path:
    """The object directory of our own processes, made if need be. Blocks. Raises: OSError."""
    own = gitdir.resolve() / _OWN_FOLDER
    apart = own / _APART
    if apart.is_dir():
        return apart
    temporary = own / f".{_APART}.{secrets.token_hex(4)}"
    try:
        (temporary / "info").mkdir(parents=True)
        for name in ("pack", *(f"{number:02x}" for number in range(256))):
            (temporary / name).symlink_to(Path("..", "..", "objects", name))
        for name in ("commit-graph", "commit-graphs"):
            (temporary / "info" / name).symlink_to(Path("..", "..", "..", "objects", "info", name))
        with suppress(FileExistsError, OSError):  # another process of ours was faster
            temporary.rename(apart)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not apart.is_dir():
        raise NotADirectoryError(f"{apart} cannot be made")
    return apart


def alternates_of(objects: Path) -> Iterator[Path]:
    """The object directories that ``info/alternates`` of `objects` names (gitrepository-layout).

    A line with a NUL is damage of the disk: no path has one.
    """
    try:
        lines = (objects / "info" / "alternates").read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        if line and not line.startswith(b"#") and b"\0" not in line:
            yield Path(os.path.normpath(objects / os.fsdecode(_unquote(line))))


def _unquote(line: bytes) -> bytes:
    """A path in an alternates file; git quotes one that begins with a double quote."""
    if not (line.startswith(b'"') and line.endswith(b'"') and len(line) > 1):
        return line
    return line[1:-1].decode("unicode_escape").encode("latin-1")


def _leads_to_mount(objects: Path, depth: int) -> bool:
    return depth > 0 and any(
        is_offered(path) or _leads_to_mount(path, depth - 1) for path in alternates_of(objects)
    )


def _apart(objects: Path, depth: int, *, make: bool) -> Iterator[Path]:
    """`objects`, which leads to a mount, and its alternates, as directories that do not."""
    apart = objects.parent / _OWN_FOLDER / _APART
    if make:
        make_apart(objects.parent)
    yield apart if apart.is_dir() else objects
    for path in alternates_of(objects):
        if is_offered(path):
            continue
        if depth > 1 and _leads_to_mount(path, depth - 1):
            yield from _apart(path, depth - 1, make=make)
        else:
            yield path


def quoted(path: Path | str) -> str:
    """A path as git reads it in GIT_ALTERNATE_OBJECT_DIRECTORIES: quoted where a colon or a quote
    is in it."""
    text = str(path)
    if ":" not in text and not text.startswith('"'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
