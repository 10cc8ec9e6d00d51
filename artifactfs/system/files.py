"""Files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
from pathlib import Path

_SYNC_FILE_RANGE_WRITE = 2


def replace_file(
    path: Path, content: bytes | str, *, mode: int = 0o666, sync: bool = False
) -> None:
    """Write a file as a whole: readers see the old content or the new one, also after a crash of
    ours; with `sync`, after a loss of power, too.

    Text is UTF-8, with surrogates for bytes that are none. `mode` (less the umask) is that of the
    new file. Blocks. Raises: OSError; then the old content stays, and nothing is left behind.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_path(path.parent)


def keep_file(path: Path, content: str, *, mode: int = 0o666) -> None:
    """Have a file with that content, and with its owner's part of `mode`. It is not replaced where
    it is so already: on a file system that several machines share, the others may look at the file
    that was there, and find none.

    Blocks. Raises: OSError.
    """
    try:
        if path.read_text() == content and path.stat().st_mode & 0o700 == mode & 0o700:
            return
    except (FileNotFoundError, ValueError):
        pass
    replace_file(path, content, mode=mode)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` at the position of `fd`: write(2) may stop early. Raises: OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_everything(path: Path) -> None:
    """Write back the whole file system that holds `path` (syncfs(2)). Blocks. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def sync_path(path: Path) -> None:
    """fsync a file or directory. Blocks. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(path: str) -> None:
    """Hand a file to the disk without waiting for it (sync_file_range(2)): a hint before fsync of
    many files, which the file system may not take. Raises: OSError where it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        write_out = ctypes.CDLL(None).sync_file_range
        whole = (ctypes.c_longlong(0), ctypes.c_longlong(0))
        write_out(descriptor, *whole, _SYNC_FILE_RANGE_WRITE)
    finally:
        os.close(descriptor)
