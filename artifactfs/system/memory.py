"""Memory: what is free in this process, given back; and whether there was too little."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find() -> Callable[[int], int] | None:
    """glibc has it (malloc_trim(3)), other C libraries give back by themselves or not at all."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


_trim = _find()


def give_back() -> None:
    """After work that took much memory for a while: some 5 ms, to be called in a thread."""
    if _trim is not None:
        _trim(0)


def out_of_memory_kills() -> int:
    """How many processes the kernel has ended so far because there was no memory, of the machine
    or of their control group; 0 where it does not say (``oom_kill`` of ``/proc/vmstat``)."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
