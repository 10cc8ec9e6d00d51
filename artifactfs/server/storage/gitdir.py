"""Bare gitdirs on disk, and the environment and configuration every Git process gets.

A gitdir is made without running git, as gitrepository-layout(5) describes it. Its folder is named
by the id of the repository, so nothing that a client sends becomes part of a path here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from artifactfs.errors import StateError
from artifactfs.system.files import keep_file, replace_file

GIT_CONFIG = """\
# Written by artifacts-server at each start. Every Git process of the server reads this file.
[core]
\tbare = true
\thooksPath = /dev/null
\tlogAllRefUpdates = false
\tfsync = committed,loose-object,reference
\tbigFileThreshold = 32m
[safe]
\tdirectory = *
[gc]
\tauto = 0
\twriteCommitGraph = false
[maintenance]
\tauto = false
[protocol]
\tversion = 2
[pack]
\tthreads = 1
\twriteReverseIndex = true
[uploadpack]
\tallowFilter = true
\tallowAnySHA1InWant = true
[transfer]
\tadvertiseObjectInfo = true
\tunpackLimit = 1
\tfsckObjects = true
[receive]
\tautogc = false
\tdenyCurrentBranch = ignore
\tdenyDeleteCurrent = ignore
\tdenyNonFastForwards = false
\tadvertisePushOptions = false
[fsck]
\tzeroPaddedFilemode = ignore
\tmissingSpaceBeforeDate = ignore
\tbadTimezone = ignore
"""
# allowRefInWant is not advertised: with it, `git clone --depth` of 2.39 fails on the order of
# sections. It is on for requests that use it anyway, as artifact-fs does to save a round trip.
# unpackLimit 1: a push stays one pack, so a fork links a few files instead of thousands.
# fsck: faults of old and widespread histories that harm nobody.

REPO_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"


def find_git() -> str:
    """Absolute path of git. Raises: StateError."""
    found = shutil.which("git")
    if found is None:
        raise StateError("git is not installed", hint="apt-get install git")
    return found


def write_git_config(path: Path) -> None:
    """Put the shared configuration in place, whole or not at all."""
    keep_file(path, GIT_CONFIG)


def git_environment(
    config: Path, *, protocol: str | None = None, settings: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of a Git process: nothing of the server's own leaks into it.

    `protocol` becomes GIT_PROTOCOL; `settings` are configuration for this one process.
    """
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_OPTIONAL_LOCKS": "0",
        # A pushed refs/replace/* would let one object pass for another when a push is checked.
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_COMMITTER_NAME": "artifacts-server",
        "GIT_COMMITTER_EMAIL": "artifacts-server@localhost",
    }
    if protocol:
        environment["GIT_PROTOCOL"] = protocol
    if settings:
        environment["GIT_CONFIG_COUNT"] = str(len(settings))
        for number, (key, value) in enumerate(settings.items()):
            environment[f"GIT_CONFIG_KEY_{number}"] = key
            environment[f"GIT_CONFIG_VALUE_{number}"] = value
    return environment


def create_gitdir(gitdir: Path, default_branch: str, *, pools: tuple[Path, ...] = ()) -> None:
    """Make an empty bare repository that borrows the objects of `pools`."""
    for part in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (gitdir / part).mkdir(parents=True, mode=0o700)
    (gitdir / "config").write_text(REPO_CONFIG)
    write_alternates(gitdir, pools)
    # HEAD last: without it the folder is not a repository.
    (gitdir / "HEAD").write_text(f"ref: refs/heads/{default_branch}\n")


def point_head(gitdir: Path, branch: str) -> None:
    """Make another branch the default one, atomically."""
    replace_file(gitdir / "HEAD", f"ref: refs/heads/{branch}\n")


def mend_gitdir(gitdir: Path, default_branch: str) -> bool:
    """Put back what a power failure took from a gitdir that was just made; True if something was.

    The folder is made before its row is synced to disk, but not synced itself: that would cost
    more than everything else about a new repository.
    """
    head, config = gitdir / "HEAD", gitdir / "config"
    if head.exists() and head.stat().st_size and config.exists() and config.stat().st_size:
        return False
    for part in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (gitdir / part).mkdir(parents=True, exist_ok=True, mode=0o700)
    config.write_text(REPO_CONFIG)
    head.write_text(f"ref: refs/heads/{default_branch}\n")
    return True


def sync_tree(directory: Path) -> None:
    """Make a small folder and all its files durable."""
    for folder, _, files in os.walk(directory):
        for name in [*files, "."]:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_alternates(gitdir: Path, pools: tuple[Path, ...]) -> None:
    """Name the pools in ``objects/info/alternates``, atomically.

    The paths are relative, so that a data folder can be moved.
    """
    objects = gitdir / "objects"
    target = gitdir / "objects" / "info" / "alternates"
    if not pools:
        target.unlink(missing_ok=True)
        return
    lines = "".join(f"{os.path.relpath(pool / 'objects', objects)}\n" for pool in pools)
    replace_file(target, lines)


def borrowed_pools(gitdir: Path) -> list[str]:
    """The ids of the pools in ``objects/info/alternates``, in their order."""
    try:
        text = (gitdir / "objects" / "info" / "alternates").read_text()
    except FileNotFoundError:
        return []
    return [Path(line).parent.name for line in text.splitlines()]


def own_bytes(gitdir: Path) -> int:
    """Bytes of the objects that only this gitdir has; what it shares with a pool is the pool's."""
    return tree_bytes(gitdir / "objects", shared=False)


def tree_bytes(directory: Path, *, shared: bool = True) -> int:
    """Bytes of all files below `directory`, quarantines excluded.

    `shared`: count files with several hard links, too. What vanishes meanwhile counts as nothing.
    """
    total = 0
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return 0
    for entry in entries:
        if entry.name.startswith("tmp_objdir-"):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                total += tree_bytes(Path(entry.path), shared=shared)
                continue
            status = entry.stat(follow_symlinks=False)
            if shared or status.st_nlink == 1:
                total += status.st_size
        except FileNotFoundError:
            continue
    return total


def remove_later(directory: Path, trash: Path) -> Path | None:
    """Move a directory into the trash, atomically; return where it is now, None if absent."""
    target = trash / f"{directory.name}.{os.urandom(6).hex()}"
    try:
        directory.rename(target)
    except FileNotFoundError:
        return None
    return target
