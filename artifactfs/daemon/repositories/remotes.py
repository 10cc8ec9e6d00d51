"""The remote of one repository: opened when it is first needed, changed by ``set-remote``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import trio

from artifactfs.daemon.repositories.registration import Secret
from artifactfs.errors import RemoteUnreachable, StateError
from artifactfs.git.remote.opening import open_remote
from artifactfs.git.remote.remote import Remote
from artifactfs.git.repository.gitdir import set_remote
from artifactfs.git.repository.refspecs import tracked_remote
from artifactfs.git.wire.credentials import Credential, CredentialFile
from artifactfs.git.wire.greeting import TipWish
from artifactfs.paths import RepoLayout

CLOSE_S = 3.0


class RemoteConnection:
    """Opens remotes with the URL and the stored credentials of one repository.

    History and refreshes share one `Remote` (`shared`). The hydrator has its own, so that a slow
    fetch of refs and a reset after an outage do not get in each other's way; the first that it
    gets is the one that cloned, whose connections are warm.
    """

    def __init__(self, layout: RepoLayout, url: str, deadline_s: float) -> None:
        self.url = url
        self._deadline_s = deadline_s
        self._credentials = CredentialFile(layout.credentials)
        self._mirror = mirror_of(layout)
        self._limits_file = layout.directory / "remote-limits"
        self._shared: Remote | None = None
        self._cloned: Remote | None = None
        self._opening = trio.Lock()
        self._open_scope = trio.CancelScope()  # of `shared`, while it waits

    async def open(self, *, expect_refs: bool = False, expect_tip: TipWish | None = None) -> Remote:
        """A new remote, the caller's to close. Raises: RemoteError."""
        remote = await open_remote(
            self.url,
            self._credentials,
            deadline_s=self._deadline_s,
            expect_refs=expect_refs,
            expect_tip=expect_tip,
            mirror=self._mirror,
        )
        self._note_limits(remote.capabilities.limits)
        return remote

    @property
    def limits(self) -> tuple[str, ...]:
        """What the remote could not do when it was last opened, also before a restart."""
        with suppress(FileNotFoundError):
            return tuple(self._limits_file.read_text().splitlines())
        return ()

    def _note_limits(self, limits: tuple[str, ...]) -> None:
        if limits != self.limits:
            self._limits_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._limits_file.write_text("".join(f"{limit}\n" for limit in limits))

    async def open_for_clone(self, tip: TipWish | None) -> Remote:
        """The same with the refs and the tip asked for at once; kept for the hydrator.

        Raises: RemoteError.
        """
        self._cloned = await self.open(expect_refs=True, expect_tip=tip)
        return self._cloned

    async def open_for_hydration(self) -> Remote:
        """What the hydrator connects with. Raises: RemoteError."""
        remote, self._cloned = self._cloned, None
        return remote if remote is not None else await self.open()

    async def shared(self) -> Remote:
        """The remote of the background jobs. Raises: RemoteError; the next call tries again."""
        async with self._opening:
            if self._shared is None:
                with trio.CancelScope() as self._open_scope:
                    self._shared = await self.open()
            if self._shared is None:
                raise RemoteUnreachable("the remote was changed while it was being opened")
            return self._shared

    async def change(self, url: str) -> None:
        """Use `url`, and what is stored for it, from now on."""
        self.url = url
        await self.aclose()

    async def aclose(self) -> None:
        """Close what is open here, and what is being opened. Takes at most a few seconds."""
        self._open_scope.cancel()
        async with self._opening:
            open_ones = [one for one in (self._shared, self._cloned) if one is not None]
            self._shared = self._cloned = None
        with trio.move_on_after(CLOSE_S) as scope:
            scope.shield = True
            for remote in open_ones:
                await remote.aclose()


def mirror_of(layout: RepoLayout) -> Path:
    """Where the objects of a remote are kept that does not speak protocol 2."""
    return layout.directory / "mirror"


async def store_remote(layout: RepoLayout, old_url: str, url: str, secret: Secret | None) -> None:
    """Put a new URL and new credentials in place of those of `old_url`, for us and for git.

    Raises: StateError.
    """
    if secret is not None:
        await trio.to_thread.run_sync(_store, layout, url, secret)
    if layout.gitdir.exists():
        with trio.CancelScope(shield=True):  # git that is killed may leave its config.lock
            remote = await tracked_remote(layout.gitdir, old_url)
            await set_remote(layout.gitdir, remote.name, url, layout.credentials)


def _store(layout: RepoLayout, url: str, secret: Secret) -> None:
    try:
        CredentialFile(layout.credentials).set(url, secret.username, secret.password)
    except OSError as error:
        raise StateError(f"cannot store the credentials: {error.strerror}") from error


def stored_secret(layout: RepoLayout, url: str) -> Credential | None:
    """What is stored for `url` now, to be put back by `restore_secret`."""
    return CredentialFile(layout.credentials).get(url)


def restore_secret(layout: RepoLayout, url: str, previous: Credential | None) -> None:
    """Put back what `stored_secret` returned."""
    file = CredentialFile(layout.credentials)
    if previous is not None:
        file.set(url, previous.username, previous.password)
        return
    with suppress(OSError):
        file.remove(url)
