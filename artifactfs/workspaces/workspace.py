"""`Workspace`: what can be done in one, for programs that block."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from artifactfs.errors import InvalidInput
from artifactfs.workspaces import snapshots
from artifactfs.workspaces.mounting import Daemon
from artifactfs.workspaces.repository import Repository
from artifactfs.workspaces.results import (
    Change,
    CommandFailed,
    Match,
    Pushed,
    Run,
    Snapshot,
    Unsaved,
    Usage,
)
from artifactfs.workspaces.running import Command, Output, command_environment, run

COMMAND_S = 3600.0
NAME_VARIABLE = "ARTIFACT_FS_WORKSPACE"
"""Tells a command which workspace it is in."""
PREFETCH_S = 3600.0
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""Git knows it without having it."""


class Workspace:
    """A mounted working tree. Made by `artifactfs.workspace`.

    `name` is that of its repository in ``artifact-fs status``, `path` where it is mounted, `base`
    the commit (hex) that it began with, None
    where there was none. Every method blocks, and has a deadline; errors are
    `artifactfs.errors.ArtifactFSError`. Paths are relative to `path`, with slashes.
    """

    def __init__(
        self, daemon: Daemon, name: str, path: str, base: str | None, *, author: str | None
    ) -> None:
        self.name = name
        self.path = Path(path)
        self.base = base
        self.last_run: Run | None = None
        """The last command that has ended."""
        self._daemon = daemon
        self._repository = Repository(path, author)
        self._identity: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"Workspace(name={self.name!r}, path={str(self.path)!r})"

    # -- programs ----------------------------------------------------------------------------

    def run(
        self,
        command: Command,
        *,
        timeout_s: float | None = COMMAND_S,
        check: bool = False,
        show: bool = True,
        on_output: Output | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = ".",
        given: str | None = None,
    ) -> Run:
        """Run a command (text is for the shell) and wait for its end.

        Its output is shown as it comes, unless `show` is false, and given to `on_output`
        (``"stdout"`` or ``"stderr"``, and the text). It gets our environment without our tokens,
        and `env`; its standard input is `given`, or empty. After `timeout_s` it and what it has
        started are ended. Raises: CommandFailed where `check` and its exit code is not 0.
        """
        outputs = [output for output in (_show if show else None, on_output) if output is not None]

        def tell(stream: str, text: str) -> None:
            for output in outputs:
                output(stream, text)

        done = run(
            command,
            cwd=str(self._within(cwd)),
            environment=self.environment(env),
            timeout_s=timeout_s,
            output=tell,
            given=None if given is None else given.encode(),
        )
        self.last_run = done
        if check and not done.ok:
            raise CommandFailed(done)
        return done

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """That of a command: ours without our tokens, the name of the workspace, somebody to commit
        as where git has nobody, and `more`."""
        if self._identity is None:
            self._identity = self._repository.identity()
        own = {NAME_VARIABLE: self.name, **self._identity}
        return command_environment({**own, **(more or {})})

    # -- files -------------------------------------------------------------------------------

    def read(self, path: str) -> str:
        """The text of a file; bytes that are no UTF-8 are replaced. Raises: OSError."""
        return self.read_bytes(path).decode("utf-8", "replace")

    def read_bytes(self, path: str) -> bytes:
        """The content of a file, which is fetched where it is not here. Raises: OSError."""
        return self._within(path).read_bytes()

    def write(self, path: str, content: str | bytes, *, executable: bool = False) -> None:
        """Write a file, and the folders that it is in. Raises: OSError."""
        target = self._within(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        if executable:
            target.chmod(target.stat().st_mode | 0o111)

    def list(self, path: str = ".") -> tuple[str, ...]:
        """The names in a folder, those of folders with a slash at their end. Raises: OSError."""
        with os.scandir(self._within(path)) as entries:
            found = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
        return tuple(sorted(name for name in found if name not in (".git", ".git/")))

    def grep(
        self, pattern: str, *paths: str, fixed: bool = False, ignore_case: bool = False
    ) -> tuple[Match, ...]:
        """Lines of text files, new ones too: an extended regular expression, or `fixed` text.

        Fetches every file that it looks at: give `paths` (folders, globs) where you can.
        """
        return self._repository.grep(pattern, paths, fixed=fixed, ignore_case=ignore_case)

    def prefetch(self, *patterns: str) -> int:
        """Fetch what matches (paths, globs as in .gitignore; everything without any) in few large
        requests; how many contents are here then."""
        answer = self._daemon.worker(
            self.name,
            "prefetch",
            deadline_s=PREFETCH_S,
            patterns=list(patterns),
            history=[],
            wait=True,
        )
        return int(answer["blobs"])

    # -- what has changed --------------------------------------------------------------------

    def changes(self) -> tuple[Change, ...]:
        """The paths that differ from HEAD, new files too; none that git ignores."""
        return self._repository.changes()

    def diff(self, *paths: str, base: str | None = None) -> str:
        """All that was done here, as one patch: from the commit it began with (or `base`) to the
        files as they are now, new ones too."""
        tree = snapshots.tree_now(self._repository)
        return self._repository.diff(base or self.base or EMPTY_TREE, tree, paths)

    def unsaved(self) -> Unsaved:
        """What is only here."""
        kept = self._daemon.losses(self.name)
        return Unsaved(
            changes=tuple(change.path for change in self.changes()),
            commits=kept["unpushed"],
            snapshots=kept["snapshots"],
            stashes=kept["stashes"],
        )

    def usage(self) -> Usage:
        """What it costs."""
        return self._daemon.usage(self.name)

    # -- git ---------------------------------------------------------------------------------

    def git(self, *arguments: str, timeout_s: float = COMMAND_S) -> str:
        """What ``git ARGUMENTS`` prints. Raises: StateError with git's words."""
        return self._repository.git(*arguments, deadline_s=timeout_s).decode("utf-8", "replace")

    @property
    def branch(self) -> str | None:
        """The current branch; None where HEAD is detached."""
        return self._repository.branch()

    @property
    def head(self) -> str | None:
        """The commit of HEAD (hex)."""
        return self._repository.head()

    def switch(self, branch: str) -> None:
        """Go to a branch, made here where there is none; local changes come along."""
        self._repository.switch_to(branch)

    def commit(self, message: str, *paths: str, hooks: bool = True) -> str | None:
        """Commit everything, new files too, or only `paths`; the commit (hex), None where nothing
        differs from HEAD. `hooks`: those of the repository may refuse it.

        Where git has no name for its user, the author is made of the user and the machine.
        """
        return self._repository.commit(message, paths, hooks=hooks)

    def push(self, branch: str | None = None, *, force: bool = False) -> Pushed:
        """Push HEAD to `branch`, without to the one of the current branch's name.

        `force`: also where that takes commits away that this workspace has seen there. Raises:
        StateError with the remote's words.
        """
        return self._repository.push(branch, force=force)

    # -- snapshots ---------------------------------------------------------------------------

    def snapshot(
        self, name: str | None = None, *, message: str = "Snapshot", push: bool = False
    ) -> Snapshot:
        """Keep the state of all files, new ones too, touching neither index nor HEAD.

        With `push` the remote has it as well, and any workspace of that remote can restore it.
        """
        taken = snapshots.take(self._repository, name, message)
        return snapshots.push(self._repository, taken) if push else taken

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Those that are here, the oldest first."""
        return snapshots.listed(self._repository)

    def restore(self, snapshot: Snapshot | str) -> Snapshot:
        """Make HEAD and all files those of a snapshot, from the remote where it is not here.

        What was here before is a snapshot itself, which is returned. Ignored files stay.
        """
        name = snapshot if isinstance(snapshot, str) else snapshot.name
        found = snapshots.find(self._repository, name) or snapshots.fetch(self._repository, name)
        return snapshots.restore(self._repository, found)

    def push_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Give it to the remote."""
        return snapshots.push(self._repository, snapshot)

    def _within(self, path: str) -> Path:
        """Raises: InvalidInput where that is outside, also by way of a symlink."""
        target = os.path.join(self.path, path)
        top = os.path.realpath(self.path)
        real = os.path.realpath(target)
        inside = real == top or real.startswith(f"{top}/")
        if not inside or real.startswith(f"{top}/.git/") or real == f"{top}/.git":
            raise InvalidInput(f"{path} is not a path of the working tree")
        return Path(real)


Work = Callable[[Workspace], object]


def _show(stream: str, text: str) -> None:
    file = sys.stdout if stream == "stdout" else sys.stderr
    file.write(text)
    file.flush()
