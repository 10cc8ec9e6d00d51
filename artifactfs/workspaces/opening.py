"""`workspace`: the one call, for ``with`` and for ``async with``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.remote_argument import REMOTE_VARIABLE, RemoteArgument, read_remote
from artifactfs.daemon.control.starting import ensure_daemon
from artifactfs.errors import AlreadyExists, InvalidInput
from artifactfs.paths import StateLayout, default_state_root
from artifactfs.workspaces.ending import OnExit, end
from artifactfs.workspaces.mounting import Daemon, checked_on_exit, new_name
from artifactfs.workspaces.ownership import Claim, claim
from artifactfs.workspaces.running import Stopper, stopped_by
from artifactfs.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from artifactfs.workspaces.asynchronous import AsyncWorkspace

MOUNT_S = 120.0


class HasRemote(Protocol):
    """What `artifactfs.client` returns for a repository that was created or forked."""

    @property
    def remote(self) -> str: ...
    @property
    def token(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """Everything that `workspace` is told."""

    remote: str | None
    ref: str | None
    token: str | None = field(repr=False)
    at: str | os.PathLike[str] | None
    name: str | None
    branch: str | None
    on_exit: OnExit
    author: str | None
    depth: int | None
    hydrate: str
    allow_other: bool
    writes: str
    timeout_s: float
    state_root: str | os.PathLike[str] | None

    def open(self) -> Opened:
        """Mount it. Raises: ArtifactFSError; then nothing is left of it."""
        state = StateLayout(Path(self.state_root or default_state_root()).absolute())
        remote = None if self.remote is None else read_remote(self.remote, token=self.token)
        if self.name is None and remote is None:
            raise InvalidInput(
                "a workspace needs a remote",
                hint=f"give one, set {REMOTE_VARIABLE}, or name a workspace that was kept",
            )
        name = self.name or new_name(remote.url if remote is not None else "")
        daemon, owned = Daemon(state), claim(state, name)
        try:
            mounted = self._mount(daemon, name, remote)
        except BaseException:
            owned.release()
            raise
        opened = Workspace(
            daemon, name, mounted["mount_point"], mounted["commit"], author=self.author
        )
        made = Opened(opened, owned, daemon, self.on_exit)
        try:
            if self.branch is not None:
                opened.switch(self.branch)
        except BaseException:
            made.close(failed=True)
            raise
        return made

    def _mount(self, daemon: Daemon, name: str, remote: RemoteArgument | None) -> dict[str, Any]:
        """New, or what was kept under that name. Raises: ArtifactFSError."""
        ensure_daemon(daemon.state)
        kept = None if self.name is None else daemon.status(name)
        if kept is not None:
            if remote is not None and remote.url != kept["remote"]:
                raise AlreadyExists(f"{name} is a workspace of another remote")
            return daemon.mount_again(name, remote, deadline_s=self.timeout_s)
        if remote is None:
            raise InvalidInput(f"no workspace {name} was kept", hint="give its remote")
        settings = RepoSettings(
            name=name,
            remote=remote.url,
            mount_point=name if self.at is None else os.path.abspath(self.at),
            ref=self.ref,
            depth=self.depth,
            hydrate=self.hydrate,
            allow_other=self.allow_other,
            writes=self.writes,
        )
        return daemon.add(settings, remote, deadline_s=self.timeout_s)


@dataclass(slots=True)
class Opened:
    """A workspace that is open, and what ends it."""

    workspace: Workspace
    _claim: Claim
    _daemon: Daemon
    _on_exit: OnExit

    def close(self, *, failed: bool) -> None:
        """Leave it as was wanted. Raises: ArtifactFSError; what is on the disk stays then."""
        try:
            with stopped_by(Stopper()):  # whoever stopped what ran in it does not stop this
                end(self.workspace, self._claim, self._daemon, self._on_exit, failed=failed)
        finally:
            self._claim.release(left_well=False)  # gc looks at what could not be ended


class OpenWorkspace:
    """What `workspace` returns, for one ``with`` or one ``async with``."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._opened: Opened | None = None

    def __enter__(self) -> Workspace:
        self._opened = self._wanted.open()
        return self._opened.workspace

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._opened is not None
        self._opened.close(failed=kind is not None)

    async def __aenter__(self) -> AsyncWorkspace:
        from artifactfs.workspaces.asynchronous import AsyncWorkspace, in_thread

        self._opened = await in_thread(self._wanted.open, undo=_undo)
        return AsyncWorkspace(self._opened.workspace)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from artifactfs.workspaces.asynchronous import to_the_end

        opened = self._opened
        assert opened is not None
        await to_the_end(lambda: opened.close(failed=kind is not None))


def _undo(opened: Opened) -> None:
    """Nobody waits for it any more: it was not used."""
    opened.close(failed=True)


def workspace(
    remote: str | HasRemote | None = None,
    *,
    ref: str | None = None,
    token: str | None = None,
    at: str | os.PathLike[str] | None = None,
    name: str | None = None,
    branch: str | None = None,
    on_exit: OnExit = "keep",
    author: str | None = None,
    depth: int | None = None,
    hydrate: str = "source",
    allow_other: bool = False,
    writes: str = "auto",
    timeout_s: float = MOUNT_S,
    state_root: str | os.PathLike[str] | None = None,
) -> OpenWorkspace:
    """A mounted working tree of `remote` for the block of a ``with`` or an ``async with``.

    ``with`` yields a `Workspace`, ``async with`` an `AsyncWorkspace` (trio and asyncio). A daemon
    is started where none runs. The tree can be read at once; contents come when they are read, and
    what `hydrate` says (``all``, ``source``, ``none``) in the background.

    `remote`: a URL or a path, or what `artifactfs.client` returned for a new repository or fork;
    without, ``$ARTIFACTS_GIT_REMOTE``.
    `ref`: a branch, tag or commit; without, the remote's HEAD. `token`: the password of an HTTP
    remote; it is on no command line, and in no environment of what runs in the workspace.
    `at`: where to mount it; without, a new folder below the daemon's mount root. `branch`: go to
    that branch first, made where there is none. `name`: how it is called here; where a workspace
    of that name was kept, its work is back. `author`: ``Name <email>`` for commits. `depth`: only
    so many commits of history. `allow_other`: other users may enter, too. `writes`: who takes what
    is written, as ``add-repo --writes`` has it. `timeout_s`: how long
    mounting may take.

    `on_exit` says what is to happen with commits and files that nobody else has:

    - ``keep``: they stay here, and a line on stderr says how to get them back;
    - ``push``: commits go to the remote's branch of the same name, what is not committed as a
      snapshot; after an exception they are kept;
    - ``refuse``: they are kept, and `UnsavedWork` is raised;
    - ``discard``: they are given up.

    A workspace without any is removed. From the beginning everything is on the disk, so that a
    program that is killed has kept its work; ``artifact-fs gc`` unmounts what it left.

    Raises, on entering: ArtifactFSError; then nothing is left behind.
    """
    url = remote if remote is None or isinstance(remote, str) else remote.remote
    if url is None and name is None:
        url = os.environ.get(REMOTE_VARIABLE) or None
    secret = token
    if secret is None and remote is not None and not isinstance(remote, str):
        secret = remote.token
    checked_on_exit(on_exit)
    return OpenWorkspace(
        Wanted(
            url,
            ref,
            secret,
            at,
            name,
            branch,
            on_exit,
            author,
            depth,
            hydrate,
            allow_other,
            writes,
            timeout_s,
            state_root,
        )
    )
