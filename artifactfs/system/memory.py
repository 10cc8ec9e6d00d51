"""Memory that is free in this process, given back to the system."""

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
