"""The connection to the remote: made when it is first needed, and made anew when told so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from artifactfs.errors import (
    ArtifactFSError,
    AuthenticationFailed,
    RemoteError,
    RemoteNotFound,
    RemoteUnusable,
)
from artifactfs.git.remote.remote import Remote
from artifactfs.hydration.link.health import RemoteHealth


class RemoteLink:
    """One `Remote` for all requests of a mount, and the health of it."""

    def __init__(self, connect: Callable[[], Awaitable[Remote]], health: RemoteHealth) -> None:
        self.health = health
        self._connect = connect
        self._lock = trio.Lock()
        self._remote: Remote | None = None
        self._old: list[Remote] = []
        self._resets = 0
        self._past_requests = 0
        self._past_bytes = 0

    @property
    def remote(self) -> Remote | None:
        """The remote, where it has been opened."""
        return self._remote

    @property
    def requests(self) -> int:
        """Requests since this mount began, over all connections."""
        return self._past_requests + (self._remote.requests.requests if self._remote else 0)

    @property
    def bytes_in(self) -> int:
        """Bytes received since this mount began, over all connections."""
        return self._past_bytes + (self._remote.requests.bytes_in if self._remote else 0)

    async def get(self) -> Remote:
        """The remote, opened if need be: waits as long as `connect` does. Raises: RemoteError."""
        while self._remote is None:
            async with self._lock:
                await self._close_old()
                if self._remote is not None:
                    break
                resets = self._resets
                remote = await self._open()
                if resets == self._resets:
                    self._remote = remote
                else:  # it was opened with what is out of date by now
                    self._old.append(remote)
        return self._remote

    async def _open(self) -> Remote:
        """A configuration that is damaged is a remote that cannot be reached, until it is mended:
        nothing else of the mount needs it."""
        try:
            return await self._connect()
        except RemoteError:
            raise
        except (ArtifactFSError, OSError) as error:
            raise RemoteUnusable(str(error)) from error

    def note_failure(self, error: RemoteError, epoch: int) -> None:
        """A request that began in `epoch` of `health` failed. Where the remote refused it, the
        next one opens the remote anew, with what is then stored for it."""
        refused = isinstance(error, AuthenticationFailed | RemoteNotFound)
        if refused and epoch == self.health.epoch:
            self.reset()
        self.health.note_failure(error, epoch=epoch)

    def reset(self) -> None:
        """Open the remote anew at the next request; those under way may fail, and try again."""
        self._resets += 1
        remote, self._remote = self._remote, None
        if remote is not None:
            self._past_requests += remote.requests.requests
            self._past_bytes += remote.requests.bytes_in
            self._old.append(remote)

    async def aclose(self) -> None:
        self.reset()
        await self._close_old()

    async def _close_old(self) -> None:
        while self._old:
            await self._old.pop().aclose()
