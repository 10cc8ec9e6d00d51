"""Keeps idle CPUs from halting while requests come in bursts.

A program that asks the mount for something waits for some 20 µs. In a virtual machine its CPU halts
meanwhile, which takes as long as the request itself, twice. Where the operator wants it, the kernel
is told to let idle CPUs wait in a loop as long as a burst lasts (Documentation/power/
pm_qos_interface.rst): ``/dev/cpu_dma_latency``, for root only. It costs CPU time of the idle ones.
"""

from __future__ import annotations

import logging
import os
import struct
import time

import trio

log = logging.getLogger(__name__)

DEVICE = "/dev/cpu_dma_latency"

_COUNTED = 32
WITHIN_S = 0.02
"""So many requests in so short a time are a burst."""

QUIET_S = 0.005
"""Without any for so long, it is over."""

_NO_LATENCY = struct.pack("=i", 0)  # in µs; it holds as long as the file is open


class Wakefulness:
    """Of one mount. `took` is called at each request, `run` while it is served."""

    def __init__(self) -> None:
        self._taken = 0
        self._counted_from = 0.0
        self._burst = trio.Event()

    def note_request(self) -> None:
        self._taken += 1
        if self._taken % _COUNTED == 0:
            now = time.monotonic()
            if now - self._counted_from < WITHIN_S:
                self._burst.set()
            self._counted_from = now

    async def run(self) -> None:
        """Until cancelled; where the device cannot be opened, nothing is kept awake."""
        while True:
            await self._burst.wait()
            try:
                await self._hold()
            except OSError as error:
                log.warning("CPUs are not kept awake: %s", error)
                return
            self._burst = trio.Event()

    async def _hold(self) -> None:
        descriptor = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, _NO_LATENCY)
            before = -1
            while before != self._taken:
                before = self._taken
                await trio.sleep(QUIET_S)
        finally:
            os.close(descriptor)
