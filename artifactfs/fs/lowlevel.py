"""What pyfuse3 does not let one say: three changes to the table of handlers that it gives libfuse.

- **No opendir.** When it is answered with ENOSYS, the kernel from then on opens directories by
  itself and keeps what `readdir` told: a second ``find`` or ``ls -lR`` sends no request at all
  instead of four for each directory. pyfuse3 passes on only the handle of an open directory,
  which then does not exist, so its `readdirplus` is wrapped: the handle is the inode number.
- **Parallel look-ups.** The kernel then does not lock a directory while one of its names is looked
  up, so that a look-up that waits does not stop the others.
- **Cached symlinks.** `readlink` is asked for once.

The table is a static variable of pyfuse3's extension module, seen only while ``fuse_session_new``
is called. So for the time of ``pyfuse3.init`` that function's entry in the module's table of
imported functions (ELF psABI, ``.rela.plt``) leads here. Where anything does not look as expected
nothing is changed, and the mount works with more requests.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

log = logging.getLogger(__name__)

_OLDEST_KERNEL = (5, 1)
"""Knows what ENOSYS means for opendir. (Cached directories: 4.20, cached symlinks: 4.20.)"""

_PARALLEL_DIROPS = 1 << 18
_CACHE_SYMLINKS = 1 << 23
_CAPABLE, _WANT = 20, 24
"""Offsets in ``struct fuse_conn_info``."""

_INIT, _READDIRPLUS, _FIELDS = 0, 41, 42
"""Positions in ``struct fuse_lowlevel_ops``, and how many there are at least."""
_HANDLE = 16
"""Offset of ``fh`` in ``struct fuse_file_info``."""

_JUMP_SLOTS = {"x86_64": 7, "aarch64": 1026}
"""R_X86_64_JUMP_SLOT, R_AARCH64_JUMP_SLOT."""
_RELA, _DYNSYM = 4, 11
"""SHT_RELA, SHT_DYNSYM."""

_SessionNew = ctypes.PYFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)
_Init = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_Readdir = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
)


class NotAsExpected(Exception):
    """pyfuse3 or libfuse are not the ones that this was written for."""


@dataclass(slots=True)
class Adjustments:
    """What was changed for the mount. `directories_by_number`: the handle of a directory is its
    number, also where it was not opened, so that opendir may say ENOSYS. `keep` holds the
    callbacks as long as libfuse may call them."""

    directories_by_number: bool = False
    keep: tuple[object, ...] = ()


@contextlib.contextmanager
def adjusted(pyfuse3: ModuleType) -> Iterator[Adjustments]:
    """Around ``pyfuse3.init``. The result has to live as long as the mount."""
    made = Adjustments()
    try:
        slot = _find_slot(pyfuse3, b"fuse_session_new")
    except (NotAsExpected, OSError, struct.error, ValueError, IndexError) as error:
        log.warning("directories are not cached by the kernel: %s", error)
        yield made
        return
    original = slot.value
    assert original is not None
    session_new = _SessionNew(original)

    def replacement(args: int, table: int, size: int, data: int) -> int | None:
        if size >= _FIELDS * 8:
            _adjust(made, table)
        created: int | None = session_new(args, table, size, data)
        return created

    callback = _SessionNew(replacement)
    slot.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        yield made
    finally:
        slot.value = original


def _adjust(made: Adjustments, table: int) -> None:
    handlers = (ctypes.c_void_p * _FIELDS).from_address(table)
    init, readdirplus = handlers[_INIT], handlers[_READDIRPLUS]
    if init is None or readdirplus is None:
        log.warning("directories are not cached by the kernel: pyfuse3's handlers are others")
        return
    wrapped = _Init(_wanting(_Init(init))), _Readdir(_numbering(_Readdir(readdirplus)))
    handlers[_INIT] = ctypes.cast(wrapped[0], ctypes.c_void_p).value
    handlers[_READDIRPLUS] = ctypes.cast(wrapped[1], ctypes.c_void_p).value
    made.directories_by_number = True
    made.keep = wrapped


def _wanting(original: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def init(data: int, connection: int) -> None:
        original(data, connection)
        capable = ctypes.c_uint.from_address(connection + _CAPABLE).value
        want = ctypes.c_uint.from_address(connection + _WANT)
        want.value |= capable & (_PARALLEL_DIROPS | _CACHE_SYMLINKS)

    return init


def _numbering(original: Callable[..., None]) -> Callable[..., None]:
    handle_at = ctypes.c_uint64.from_address

    def readdirplus(request: int, ino: int, size: int, offset: int, info: int) -> None:
        handle_at(info + _HANDLE).value = ino
        original(request, ino, size, offset, info)

    return readdirplus


# Finding the entry


def _find_slot(pyfuse3: ModuleType, function: bytes) -> ctypes.c_void_p:
    """Where the extension module keeps the address of `function`. Raises: NotAsExpected, …"""
    relocation = _JUMP_SLOTS.get(platform.machine())
    if relocation is None or struct.calcsize("P") != 8:
        raise NotAsExpected(f"this processor is not known: {platform.machine()}")
    if _kernel() < _OLDEST_KERNEL:
        raise NotAsExpected("the kernel is too old")
    path = os.path.realpath(pyfuse3.__spec__.origin or "") if pyfuse3.__spec__ else ""
    if not path.endswith(".so"):
        raise NotAsExpected("pyfuse3 is not an extension module")
    offset = _slot_offset(Path(path).read_bytes(), function, relocation)
    address, writable = _loaded(path, offset)
    if not writable:
        raise NotAsExpected("pyfuse3's imports are read-only")
    return ctypes.c_void_p.from_address(address)


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _slot_offset(elf: bytes, function: bytes, relocation: int) -> int:
    """The virtual address in the file of the entry of `function`. Raises: NotAsExpected."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise NotAsExpected("pyfuse3 is not a 64-bit little-endian ELF file")
    (start,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + n * size) for n in range(count)]
    for _, kind, _, _, offset, length, link, _, _, _ in sections:
        if kind != _RELA or sections[link][1] != _DYNSYM:
            continue
        symbols, names = sections[link][4], sections[sections[link][6]][4]
        for at in range(offset, offset + length, 24):
            place, info = struct.unpack_from("<QQ", elf, at)
            if info & 0xFFFFFFFF != relocation:
                continue
            (name,) = struct.unpack_from("<I", elf, symbols + (info >> 32) * 24)
            if elf[names + name :].startswith(function + b"\0") if name else False:
                return int(place)
    raise NotAsExpected(f"pyfuse3 does not import {function.decode()}")


def _loaded(path: str, offset: int) -> tuple[int, bool]:
    """The address in memory of a virtual address of the file, and whether it is writable."""
    base = None
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(None, 5)
        first, _, last = fields[0].partition("-")
        begin, end = int(first, 16), int(last, 16)
        if len(fields) > 5 and fields[5] == path and base is None:
            base = begin - int(fields[2], 16)
        if base is not None and begin <= base + offset < end:
            return base + offset, "w" in fields[1]
    raise NotAsExpected("pyfuse3's memory is not found")
