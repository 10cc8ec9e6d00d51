"""The remote of one mount: connected when first needed, replaced by ``set-remote``."""

from __future__ import annotations

import os

import trio

from artifactfs.daemon.registration import Secret
from artifactfs.errors import StateError
from artifactfs.git.command import run_git
from artifactfs.git.credentials import Credential, CredentialFile
from artifactfs.git.remote import Remote, open_remote
from artifactfs.paths import RepoLayout

GIT_CONFIG_DEADLINE_S = 10.0


class RemoteConnection:
    """Gives every user in a worker the same `Remote`."""

    def __init__(self, layout: RepoLayout, url: str, deadline_s: float) -> None:
        self.url = url
        self.deadline_s = deadline_s
        self._credentials = CredentialFile(layout.credentials)
        self._remote: Remote | None = None
        self._connecting = trio.Lock()

    @property
    def current(self) -> Remote | None:
        """The remote as far as somebody has connected already."""
        return self._remote

    async def connect(self) -> Remote:
        """Connect at the first call. Raises: RemoteError; the next call tries again."""
        async with self._connecting:
            if self._remote is None:
                self._remote = await open_remote(
                    self.url, self._credentials, deadline_s=self.deadline_s
                )
            return self._remote

    async def replace(self, url: str) -> None:
        """Use `url` and the stored credentials from now on."""
        async with self._connecting:
            previous, self._remote = self._remote, None
            self.url = url
        if previous is not None:
            await previous.aclose()

    async def aclose(self) -> None:
        if self._remote is not None:
            await self._remote.aclose()


async def store_remote(
    layout: RepoLayout, old_url: str, new_url: str, secret: Secret | None
) -> None:
    """Put a new URL and new credentials in place for us and for git. Raises: StateError."""
    if secret is not None:
        await trio.to_thread.run_sync(store_secret, layout, new_url, secret)
    if new_url != old_url and layout.gitdir.exists():
        await run_git(
            "config",
            "remote.origin.url",
            new_url,
            gitdir=layout.gitdir,
            deadline_s=GIT_CONFIG_DEADLINE_S,
        )


def store_secret(layout: RepoLayout, url: str, secret: Secret) -> None:
    try:
        CredentialFile(layout.credentials).set(url, secret.username, secret.password)
    except OSError as error:
        raise StateError(f"cannot store the credentials: {os.strerror(error.errno or 0)}") from error


def stored_secret(layout: RepoLayout, url: str) -> Credential | None:
    """What is stored for `url` now."""
    return CredentialFile(layout.credentials).get(url)


def restore_secret(layout: RepoLayout, url: str, previous: Credential | None) -> None:
    """Put back what `stored_secret` returned."""
    if previous is None:
        CredentialFile(layout.credentials).remove(url)
    else:
        CredentialFile(layout.credentials).set(url, previous.username, previous.password)
