"""systemd's store of descriptors: mounts that outlive all of our processes at once.

The fork server keeps each mount while the daemon is started anew. Where both are killed, and the
workers with them (``systemctl kill -s KILL``, a control group that has no memory left), the service
manager still has a copy: two descriptors with the same name for each mount, ``/dev/fuse`` and a
file in memory with what its worker has said (`outliving`). The next daemon gets them when it is
started (sd_notify(3): ``FDSTORE=1``, ``FDNAME=``; sd_listen_fds(3)). The unit has to allow it:
``FileDescriptorStoreMax=``.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from artifactfs.daemon.host import sdnotify
from artifactfs.daemon.supervisor.keeper import KeptMount

log = logging.getLogger(__name__)

_PREFIX = "mount-"
_LARGEST = 1 << 20
_NAMES, _COUNT, _PID = "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"
_FIRST = 3
_TAKE_S = 5.0
"""The manager may take its time."""


@dataclass(slots=True)
class DescriptorStore:
    """What is to be in the store. It is told by `run`, since the manager may let us wait."""

    _there: dict[str, tuple[KeptMount, int]] = field(default_factory=dict)
    """The mounts that are, and their files in memory."""
    _to_tell: dict[str, KeptMount | None] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)

    def put(self, name: str, mount: KeptMount) -> None:
        """It is new, or what is said of it."""
        self._to_tell[name] = mount
        self._changed.set()

    def remove(self, name: str) -> None:
        self._to_tell[name] = None
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            while self._to_tell:
                name, mount = self._to_tell.popitem()
                try:
                    await self._tell(name, mount)
                except OSError as error:  # no descriptors or no memory
                    fields = {"repo": name, "cause": str(error)}
                    log.warning("the mount is not in the descriptor store", extra=fields)

    async def _tell(self, name: str, mount: KeptMount | None) -> None:
        known, about = self._there.get(name, (None, -1))
        if mount is not None and mount is known:
            _write(about, mount)
            return
        if known is not None:
            del self._there[name]
            os.close(about)
        # Also what a process before us has put there.
        await _notify(FDSTOREREMOVE=1, FDNAME=_key(name))
        if mount is None or name in self._to_tell:
            return
        about = os.memfd_create(_key(name))
        self._there[name] = (mount, about)
        _write(about, mount)
        device = os.dup(mount.descriptor)  # it may be let go of meanwhile
        try:
            await _notify(device, about, FDSTORE=1, FDNAME=_key(name))
        finally:
            os.close(device)


async def _notify(*carried: int, **fields: str | int) -> None:
    notify = partial(sdnotify.notify, *carried, wait_s=_TAKE_S, **fields)
    await trio.to_thread.run_sync(notify)


def _key(name: str) -> str:
    return _PREFIX + name


def _write(about: int, mount: KeptMount) -> None:
    payload = json.dumps(mount.message).encode()
    os.pwrite(about, payload, 0)
    os.ftruncate(about, len(payload))


def passed() -> list[KeptMount]:
    """The mounts that the service manager has given to this process. Only the first call has any:
    a program that we become has not got these descriptors."""
    environment = {name: os.environ.pop(name, "") for name in (_NAMES, _COUNT, _PID)}
    if environment[_PID] != str(os.getpid()):
        return []
    found: dict[str, dict[bool, int]] = {}
    numbers = range(_FIRST, _FIRST + int(environment[_COUNT]))
    for descriptor, name in zip(numbers, environment[_NAMES].split(":"), strict=False):
        os.set_inheritable(descriptor, False)
        pair = found.setdefault(name, {})
        is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        if name.startswith(_PREFIX) and is_device not in pair:
            pair[is_device] = descriptor
        else:
            os.close(descriptor)
    return [mount for pair in found.values() if (mount := _mount_of(pair)) is not None]


def _mount_of(pair: dict[bool, int]) -> KeptMount | None:
    """Of ``/dev/fuse`` and of what is said of it; None where one is missing."""
    device, about = pair.get(True), pair.get(False)
    message = None
    if about is not None:
        with suppress(ValueError):
            message = json.loads(os.pread(about, _LARGEST, 0))
        os.close(about)
    if device is not None and message is None:
        os.close(device)
    return KeptMount(message, device) if device is not None and message is not None else None
