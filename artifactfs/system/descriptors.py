"""File descriptors, and how one process sends them to another: unix(7), cmsg(3)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def attached(*carried: int) -> list[tuple[int, int, array.array[int]]]:
    """Ancillary data of a `sendmsg` that carries these descriptors, if there are any."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", carried))] if carried else []


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The file descriptors in the ancillary data of a `recvmsg`, made close-on-exec."""
    received = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    for descriptor in received:
        os.set_inheritable(descriptor, False)
    return list(received)


@contextmanager
def closing_descriptor(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)
