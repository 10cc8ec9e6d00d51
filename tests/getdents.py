"""A directory by getdents64(2), with a buffer of any size: `os.listdir` takes 32 KB at once."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)


def names_in(directory: str | os.PathLike[str], room: int) -> list[str]:
    """The names in `directory`, ``.`` and ``..`` among them, in its order; `room` bytes at a time.
    Raises: OSError."""
    buffer, names = ctypes.create_string_buffer(room), []
    fd = os.open(directory, os.O_RDONLY)
    try:
        while (length := _LIBC.getdents64(fd, buffer, room)) > 0:
            at = 0
            while at < length:  # struct linux_dirent64
                size = int.from_bytes(buffer[at + 16 : at + 18], "little")
                names.append(os.fsdecode(buffer[at + 19 : at + size].split(b"\0")[0]))
                at += size
    finally:
        os.close(fd)
    if length < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return names
