"""Is the remote up? Readers of a remote that is known to be down fail at once.

A remote is known to be down when it refused us (credentials, no such repository), or when
requests have failed, with none succeeding, for `grace_s`. A probe then asks it again and again
with a growing delay, and the first answer ends the outage. A read that comes meanwhile has the
probe done at once, or as soon as may be where one has just failed, so that the first read after the
remote is back works; and a changed credential file is tried at once.

Plain state for one event loop; `admit` and `run` are the only methods that wait.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.errors import (
    ArtifactFSError,
    AuthenticationFailed,
    ProtocolError,
    RemoteError,
    RemoteNotFound,
    RemoteUnusable,
)
from artifactfs.hydration.errors import HydrationFailed
from artifactfs.redact import redact

log = logging.getLogger(__name__)

MAX_GRACE_S = 15.0
"""Requests fail that long before the remote counts as down: a server that restarts is not."""
FORGOTTEN_S = 60.0
"""A failure so long after the last one begins anew: nobody may have asked in between."""
PROBE_TIMEOUT_S = 10.0
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
READER_WAITS_S = 2.0
"""A reader waits that long for a probe: refused connections answer in a millisecond."""
MIN_SPACING_S = 0.5
"""Readers have a probe done at most that often."""
QUICK_SPACING_S = 0.05
"""The same where the last probe failed at once, as a refused connection does: the first read after
the remote is back must work."""
QUICK_S = 0.05
WAITS = 20
WAITS_WITHIN_S = 10.0
"""A reader who comes right after a probe that failed waits for the next one, since the remote may
be back by then; but a scan of absent files is not to take as long as all of their waits."""


_FINAL = (AuthenticationFailed, RemoteNotFound, RemoteUnusable)
_FINAL_KINDS = tuple(kind.__name__ for kind in _FINAL)


@dataclass(frozen=True, slots=True)
class Outage:
    """Why the remote is down: `since` in seconds since 1970, `kind` an error's class name."""

    since: float
    kind: str
    cause: str


class RemoteHealth:
    """The circuit of one remote. `on_down` runs once when an outage begins, `on_up` at its end."""

    def __init__(
        self,
        *,
        repo: str,
        deadline_s: float,
        credentials: Path,
        probe: Callable[[], Awaitable[None]],
        on_down: Callable[[Outage], None],
        on_up: Callable[[], None],
    ) -> None:
        self.outage: Outage | None = None
        self.failures = 0
        """Failed requests since the last one that succeeded."""
        self.epoch = 0
        """Counts ends of outages and changes of the remote: what a request that began in an
        earlier epoch fails with says nothing about the remote as it is now."""
        self._repo = repo
        self._grace_s = min(MAX_GRACE_S, deadline_s / 2)
        self._credentials = credentials
        self._credentials_seen = self._signature()
        self._probe = probe
        self._on_down = on_down
        self._on_up = on_up
        self._failing_since: tuple[float, float] | None = None  # trio clock, time of day
        self._failed_at = 0.0
        self._wake = trio.Event()
        self._probe_ended = trio.Event()
        self._probing = False
        self._next_probe_at = 0.0
        self._waits: deque[float] = deque()

    @property
    def up(self) -> bool:
        return self.outage is None

    def note_success(self) -> None:
        """The remote answered."""
        self.failures = 0
        self._failing_since = None
        if self.outage is not None:
            log.info(
                "remote of %s is back after %.0f s", self._repo, time.time() - self.outage.since
            )
            self.outage = None
            self.epoch += 1
            self._on_up()

    def note_failure(self, error: ArtifactFSError, *, epoch: int | None = None) -> None:
        """A request that began in `epoch` (None: this one) failed; may begin an outage."""
        if epoch is not None and epoch != self.epoch:
            return
        self.failures += 1
        now = trio.current_time()
        if self._failing_since is None or now - self._failed_at > FORGOTTEN_S:
            self._failing_since = (now, time.time())
        self._failed_at = now
        began, since = self._failing_since
        if self.outage is not None:
            self.outage = Outage(self.outage.since, type(error).__name__, redact(error.message))
        elif _is_final(error) or (
            now - began >= self._grace_s and not isinstance(error, ProtocolError)
        ):
            self._begin(Outage(since, type(error).__name__, redact(error.message)))

    def _begin(self, outage: Outage) -> None:
        self.outage = outage
        final = outage.kind in _FINAL_KINDS
        spacing = MIN_SPACING_S if final else QUICK_SPACING_S
        self._next_probe_at = trio.current_time() + spacing
        self._credentials_seen = self._signature()
        log.warning("remote of %s is down: %s", self._repo, outage.cause)
        self._on_down(outage)
        self._wake.set()

    def reset(self) -> None:
        """Believe that the remote is up: its URL or its credentials are new."""
        self.epoch += 1
        self.failures = 0
        self._failing_since = None
        self._credentials_seen = self._signature()
        if self.outage is not None:
            self.outage = None
            self._on_up()

    async def admit(self) -> None:
        """Return where the remote may be asked; else raise HydrationFailed with the cause.

        Waits at most READER_WAITS_S, and not at all while the remote is up.
        """
        if self.outage is None:
            return
        with trio.move_on_after(READER_WAITS_S):
            await self._ask_for_probe()
        if self.outage is not None:
            raise self.failure()

    async def _ask_for_probe(self) -> None:
        """Wait for the end of a probe; return at once where readers have had enough of them."""
        if self._signature() != self._credentials_seen:
            self._next_probe_at = 0.0
        left_s = self._next_probe_at - trio.current_time()
        if left_s > 0 and not self._probing:
            if not self._may_wait():
                return
            await trio.sleep(left_s)
            if self.outage is None:
                return
        self._wake.set()
        await self._probe_ended.wait()

    def _may_wait(self) -> bool:
        """Whether a reader may wait for the next probe, where the last one has only just failed."""
        if self.outage is not None and self.outage.kind in _FINAL_KINDS:
            return False
        now = trio.current_time()
        while self._waits and self._waits[0] < now - WAITS_WITHIN_S:
            self._waits.popleft()
        if len(self._waits) >= WAITS:
            return False
        self._waits.append(now)
        return True

    def failure(self) -> HydrationFailed:
        """The error of a reader that comes during the outage."""
        outage = self.outage
        cause = outage.cause if outage is not None else "the remote is down"
        auth = outage is not None and outage.kind == AuthenticationFailed.__name__
        hint = "give new credentials with `artifact-fs set-remote`" if auth else None
        return HydrationFailed(f"the remote is down: {cause}", hint=hint)

    async def run(self) -> None:
        """Probe while there is an outage. Never returns; cancel it."""
        delay = FIRST_DELAY_S
        while True:
            if self.outage is None:
                delay = FIRST_DELAY_S
                await self._wake.wait()
            else:
                with trio.move_on_after(delay * random.uniform(0.8, 1.2)):
                    await self._wake.wait()
                delay = min(delay * 2, MAX_DELAY_S)
            self._wake = trio.Event()
            if self.outage is not None:
                await self._probe_once()

    async def _probe_once(self) -> None:
        started = trio.current_time()
        epoch = self.epoch
        self._probing = True
        self._credentials_seen = self._signature()
        try:
            with trio.fail_after(PROBE_TIMEOUT_S):
                await self._probe()
        except trio.TooSlowError:
            late = RemoteError(f"the remote did not answer in {PROBE_TIMEOUT_S:.0f} s")
            self.note_failure(late, epoch=epoch)
        except ArtifactFSError as error:
            self.note_failure(error, epoch=epoch)
        else:
            self.note_success()
        finally:
            self._probing = False
            duration_s = trio.current_time() - started
            # A black hole costs each asking reader up to READER_WAITS_S: ask it seldom.
            spacing = (
                QUICK_SPACING_S if duration_s < QUICK_S else max(MIN_SPACING_S, 5 * duration_s)
            )
            self._next_probe_at = trio.current_time() + spacing
            self._probe_ended.set()
            self._probe_ended = trio.Event()

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            info = self._credentials.stat()
        except OSError:
            return None
        return info.st_mtime_ns, info.st_size, info.st_ino


def _is_final(error: ArtifactFSError) -> bool:
    """Whether asking again soon is of no use."""
    return isinstance(error, _FINAL)
