"""The remote of one repository: opened when it is first needed, changed by ``set-remote``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.registration import Secret, keep
from artifactfs.errors import RemoteUnreachable
from artifactfs.git.configuration.defaults import default_remote_name
from artifactfs.git.configuration.kept import refresh, surroundings_of
from artifactfs.git.remote.again import again
from artifactfs.git.remote.opening import Place, open_remote
from artifactfs.git.remote.remote import Remote
from artifactfs.git.repository.gitdir import set_remote
from artifactfs.git.repository.refspecs import tracked_remote
from artifactfs.git.surroundings import within, write_private
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.git.wire.greeting import TipWish
from artifactfs.paths import RepoLayout
from artifactfs.redact import redact

CLOSE_S = 3.0


class RemoteConnection:
    """Opens remotes with the URL and the stored credentials of one repository.

    History and refreshes share one `Remote` (`shared`). The hydrator has its own, so that a slow
    fetch of refs and a reset after an outage do not get in each other's way; the first that it
    gets is the one that cloned, whose connections are warm.
    """

    def __init__(
        self, layout: RepoLayout, url: str, deadline_s: float, *, mount_point: str | None = None
    ) -> None:
        """`mount_point`: where this process serves the repository, if it does."""
        self.url = url
        self._mount_point = mount_point
        self._deadline_s = deadline_s
        self._credentials = CredentialFile(layout.credentials)
        self._mirror = mirror_of(layout)
        self._layout = layout
        self._limits_file = layout.directory / "remote-limits"
        self._because_file = layout.directory / "remote-by-git"
        self._shared: Remote | None = None
        self._shared_url = ""
        self._cloned: Remote | None = None
        self._with_the_tip: Remote | None = None
        self._opening = trio.Lock()
        self._open_scope = trio.CancelScope()  # of `shared`, while it waits

    async def open(
        self,
        *,
        expect_refs: bool = False,
        expect_tip: TipWish | None = None,
        arriving: trio.Nursery | None = None,
    ) -> Remote:
        """A new remote, the caller's to close: see `open_remote`. Raises: RemoteError.

        What passes is tried again, within the repository's deadline.
        """
        attempt = partial(
            self._open_once, expect_refs=expect_refs, expect_tip=expect_tip, arriving=arriving
        )
        return await again(attempt, self._deadline_s)

    async def _open_once(
        self,
        *,
        expect_refs: bool = False,
        expect_tip: TipWish | None = None,
        arriving: trio.Nursery | None = None,
    ) -> Remote:
        place = await self._find()
        remote = await open_remote(
            self.url,
            self._credentials,
            deadline_s=self._deadline_s,
            expect_refs=expect_refs,
            expect_tip=expect_tip,
            arriving=arriving,
            mirror=self._mirror,
            place=place,
        )
        self._note(self._limits_file, remote.capabilities.limits)
        because = remote.capabilities.git_because
        self._note(self._because_file, () if because is None else (because,))
        return remote

    async def _find(self) -> Place:
        """What the gitdir says of its remote, once there is one: the user may have changed it."""
        if not self._layout.gitdir.exists():
            return Place(None, await default_remote_name(), self._mount_point)
        tracked = await tracked_remote(self._layout.gitdir, self.url)
        if tracked.url:
            self.url = tracked.url
        return Place(self._layout.gitdir, tracked.name, self._mount_point)

    @property
    def shown_url(self) -> str:
        """The URL that is used, as the gitdir's configuration has it, without any secret."""
        return redact(self.url)

    @property
    def git_because(self) -> str | None:
        """Why git reached the remote for us when it was last opened; None: it did not."""
        return next(iter(self._noted(self._because_file)), None)

    @property
    def limits(self) -> tuple[str, ...]:
        """What the remote could not do when it was last opened, also before a restart."""
        return self._noted(self._limits_file)

    def _noted(self, path: Path) -> tuple[str, ...]:
        with suppress(FileNotFoundError):
            return tuple(path.read_text().splitlines())
        return ()

    def _note(self, path: Path, lines: tuple[str, ...]) -> None:
        if lines != self._noted(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines))

    async def open_for_clone(
        self, tip: TipWish | None, arriving: trio.Nursery | None = None
    ) -> Remote:
        """The same with the refs and the tip asked for at once; kept for the hydrator. `arriving`:
        where the tip goes on to come.

        Raises: RemoteError.
        """
        self._cloned = await self.open(expect_refs=True, expect_tip=tip, arriving=arriving)
        self._with_the_tip = self._cloned
        return self._cloned

    async def open_for_trees(self) -> Remote:
        """What the trees come from that the clone has left out: at first the remote that they are
        on their way from. Raises: RemoteError."""
        remote, self._with_the_tip = self._with_the_tip, None
        return remote if remote is not None and remote.expects_tip else await self.shared()

    async def open_for_hydration(self) -> Remote:
        """What the hydrator connects with. Raises: RemoteError."""
        remote, self._cloned = self._cloned, None
        # The hydrator tries again by itself, and has to know of each failure.
        return remote if remote is not None else await self._open_once()

    async def shared(self) -> Remote:
        """The remote of the background jobs. Raises: RemoteError; the next call tries again."""
        async with self._opening:
            if self._shared is not None and self._shared_url != await self._url_now():
                await self._shared.aclose()  # `git remote set-url`
                self._shared = None
            if self._shared is None:
                with trio.CancelScope() as self._open_scope:
                    self._shared = await self.open()
                    self._shared_url = self.url
            if self._shared is None:
                raise RemoteUnreachable("the remote was changed while it was being opened")
            return self._shared

    async def _url_now(self) -> str:
        await self._find()
        return self.url

    async def change(self, url: str) -> None:
        """Use `url`, and what is stored for it, from now on."""
        self.url = url
        await self.aclose()

    async def aclose(self) -> None:
        """Close what is open here, and what is being opened. Takes at most a few seconds."""
        self._open_scope.cancel()
        async with self._opening:
            open_ones = [one for one in (self._shared, self._cloned) if one is not None]
            self._shared = self._cloned = self._with_the_tip = None
        with trio.move_on_after(CLOSE_S) as scope:
            scope.shield = True
            for remote in open_ones:
                await remote.aclose()


def mirror_of(layout: RepoLayout) -> Path:
    """Where the objects of a remote are kept that does not speak protocol 2."""
    return layout.directory / "mirror"


async def store_remote(
    layout: RepoLayout, settings: RepoSettings, url: str, secret: Secret | None
) -> None:
    """Put a new URL and new credentials in place of those of `settings`, for us and for git.

    Raises: StateError, InvalidInput.
    """
    await trio.to_thread.run_sync(keep, layout, secret, url)
    if not layout.gitdir.exists():
        return
    with within(await surroundings_of(layout, settings)):
        with trio.CancelScope(shield=True):  # git that is killed may leave its config.lock
            remote = await tracked_remote(layout.gitdir, settings.remote)
            await set_remote(layout.gitdir, remote.name, url)
        await refresh(layout, replace(settings, remote=url))


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """What `store_remote` replaces, to be put back."""

    credentials: bytes | None
    environment: bytes | None


def kept_files(layout: RepoLayout) -> KeptFiles:
    """What is stored now. Raises: OSError."""
    return KeptFiles(_content(layout.credentials), _content(layout.git_environment))


def restore(layout: RepoLayout, files: KeptFiles) -> None:
    """Put back what `kept_files` returned. Raises: OSError."""
    pairs = (
        (layout.credentials, files.credentials),
        (layout.git_environment, files.environment),
    )
    for path, content in pairs:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_private(path, content)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
