"""A mount and a plain clone of a repository whose attributes convert files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.fs.mounting import Mount, git


def commit(work: Path, files: dict[str, bytes]) -> None:
    """Commit exact blobs: no clean filter has a say."""
    git("init", "-q", "-b", "main", cwd=work)
    stream = [b"commit refs/heads/main\ncommitter A <a@b> 1600000000 +0000\ndata 3\none\n"]
    for path, content in files.items():
        quoted = b'"' + path.encode() + b'"'
        stream.append(b"M 100644 inline %b\ndata %d\n%b\n" % (quoted, len(content), content))
    command = ["git", "-c", "fastimport.unpackLimit=1", "fast-import", "--quiet"]
    subprocess.run(command, cwd=work, input=b"".join(stream), check=True)


class Pair:
    """A mount with a gitdir of its own, and a plain clone, made under one configuration."""

    def __init__(self, mount: Mount, clone: Path, environment: dict[str, str]) -> None:
        self.mount = mount
        self.top = mount.path
        self.clone = clone
        self._environment = environment

    def git(self, *arguments: str) -> str:
        """Run it in both; what it prints has to be the same."""
        theirs = git(*arguments, cwd=self.clone, **self._environment)
        ours = git(*arguments, cwd=self.top, **self._environment)
        assert ours == theirs
        return ours

    def compare(self) -> None:
        """Sizes first: they must be true before anything is read."""
        names = sorted(
            os.path.relpath(os.path.join(folder, name), self.clone)
            for folder, folders, files in os.walk(self.clone)
            for name in files
            if ".git" not in Path(folder).relative_to(self.clone).parts
        )
        sizes = {name: (self.clone / name).stat().st_size for name in names}
        assert {name: (self.top / name).stat().st_size for name in names} == sizes
        for name in names:
            assert (self.top / name).read_bytes() == (self.clone / name).read_bytes(), name


def pair_of(
    files: dict[str, bytes],
    place: Path,
    new_mount: Callable[..., Mount],
    *,
    config: str = "",
    late: str = "",
    **start: object,
) -> Pair:
    """Commit `files`, clone and mount them, everything below `place`.

    `config` is the user's git configuration, in ``place/global.config``; `late` is added to it
    after the clone. The mount's process inherits the environment: set GIT_CONFIG_GLOBAL before.
    """
    origin = place / "origin"
    origin.mkdir()
    commit(origin, files)
    global_config = place / "global.config"
    global_config.write_text(config)
    environment = {"GIT_CONFIG_GLOBAL": str(global_config)}
    git("clone", "-q", str(origin), str(place / "clone"), cwd=place, **environment)
    global_config.write_text(config + late)
    mount = new_mount(origin)
    gitdir = mount.layout / "git"
    git("clone", "-q", "--bare", str(origin), str(gitdir), cwd=place)
    git("config", "core.bare", "false", cwd=gitdir)
    git("config", "core.worktree", str(mount.path), cwd=gitdir)
    mount.start(**start)
    return Pair(mount, place / "clone", environment)
