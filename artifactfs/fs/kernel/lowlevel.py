"""What pyfuse3 does not let one say: changes to the table of handlers that it gives libfuse.

- **No open, no opendir.** When they are answered with ENOSYS, the kernel from then on opens files
  and directories by itself and keeps what was read: a second ``grep -r``, ``find`` or ``ls -lR``
  sends no request at all, instead of two for each file and four for each directory. (And with
  `create` answered so, a new file is one `mknod`, without the `release` at its end.) pyfuse3
  passes on only handles, which then do not exist, so the handlers that get one are wrapped: the
  handle is the inode number. They also get no word of who asks; `Adjustments.caller` finds out.
- **Truncation by `setattr`.** With `ATOMIC_O_TRUNC` the kernel leaves the truncation of ``O_TRUNC``
  to an `open` that is not sent any more.
- **Explicit invalidation.** The kernel does not drop the pages of a file because its mtime is
  another than before, so what was just written is read from memory, and it asks for no attributes
  before each read. Only this process changes anything on its own, and says so (`StaleEntries`).
- **Parallel look-ups.** The kernel then does not lock a directory while one of its names is looked
  up, so that a look-up that waits does not stop the others.
- **Set-ID bits.** We take them away (`privileges`), so the kernel asks for nothing before a chown.
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
from typing import Any

from artifactfs.fs.kernel import initreply

log = logging.getLogger(__name__)

_OLDEST_KERNEL = (5, 1)
"""Knows what ENOSYS means for opendir. (For open: 3.16. Cached directories and symlinks: 4.20.)"""

_ATOMIC_O_TRUNC = 1 << 3
_AUTO_INVAL_DATA = 1 << 12
_PARALLEL_DIROPS = 1 << 18
_HANDLE_KILLPRIV = 1 << 20
_CACHE_SYMLINKS = 1 << 23
_EXPLICIT_INVAL_DATA = 1 << 25
_CAPABLE, _WANT = 20, 24
"""Offsets in ``struct fuse_conn_info``."""

_INIT, _READ, _WRITE, _FSYNC, _WRITE_BUF, _READDIRPLUS, _FIELDS = 0, 15, 16, 19, 36, 41, 42
"""Positions in ``struct fuse_lowlevel_ops``, and how many there are at least."""
_HANDLE = 16
"""Offset of ``fh`` in ``struct fuse_file_info``."""
_PID = 8
"""Offset in ``struct fuse_ctx``."""

_JUMP_SLOTS = {"x86_64": 7, "aarch64": 1026}
"""R_X86_64_JUMP_SLOT, R_AARCH64_JUMP_SLOT."""
_RELA, _DYNSYM = 4, 11
"""SHT_RELA, SHT_DYNSYM."""

_SessionNew = ctypes.PYFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)
_Init = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_REQUEST = _FILE = _DATA = ctypes.c_void_p
_INO, _SIZE, _OFFSET = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int64
_BY_HANDLE = {
    _READ: ctypes.PYFUNCTYPE(None, _REQUEST, _INO, _SIZE, _OFFSET, _FILE),
    _WRITE: ctypes.PYFUNCTYPE(None, _REQUEST, _INO, _DATA, _SIZE, _OFFSET, _FILE),
    _FSYNC: ctypes.PYFUNCTYPE(None, _REQUEST, _INO, ctypes.c_int, _FILE),
    _WRITE_BUF: ctypes.PYFUNCTYPE(None, _REQUEST, _INO, _DATA, _OFFSET, _FILE),
    _READDIRPLUS: ctypes.PYFUNCTYPE(None, _REQUEST, _INO, _SIZE, _OFFSET, _FILE),
}
"""Handlers of which pyfuse3 passes on the handle in their last argument, a ``fuse_file_info``."""


class NotAsExpected(Exception):
    """pyfuse3 or libfuse are not the ones that this was written for."""


def _nobody(request: int) -> int:
    return 0


@dataclass(slots=True)
class Adjustments:
    """What was changed for the mount. `by_number`: the handle of a file or directory is its
    number, also where it was not opened, so that open and opendir may say ENOSYS. `keep` holds
    the callbacks as long as libfuse may call them."""

    by_number: bool = False
    keep: tuple[object, ...] = ()
    session: int = 0
    """Address of the ``struct fuse_session``."""
    request: int = 0
    """Address of the request that was last given to a wrapped handler."""
    process_of: Callable[[int], int] = _nobody

    def caller(self) -> int:
        """The process that a read or write is for, 0 where that is not known. To be asked before
        the handler waits for anything."""
        return self.process_of(self.request)


@contextlib.contextmanager
def adjusted(pyfuse3: ModuleType) -> Iterator[Adjustments]:
    """Around ``pyfuse3.init``. The result has to live as long as the mount."""
    made = Adjustments()
    try:
        slot = _find_slot(pyfuse3, b"fuse_session_new")
    except (NotAsExpected, OSError, struct.error, ValueError, IndexError) as error:
        log.warning("files are not opened by the kernel: %s", error)
        yield made
        return
    original = slot.value
    assert original is not None
    session_new = _SessionNew(original)

    def replacement(args: int, table: int, size: int, data: int) -> int | None:
        if size >= _FIELDS * 8:
            _adjust(made, table)
        created: int | None = session_new(args, table, size, data)
        made.session = created or 0
        return created

    callback = _SessionNew(replacement)
    slot.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        yield made
    finally:
        slot.value = original


def _adjust(made: Adjustments, table: int) -> None:
    handlers = (ctypes.c_void_p * _FIELDS).from_address(table)
    found = {position: handlers[position] or 0 for position in (_INIT, *_BY_HANDLE)}
    if 0 in found.values():
        log.warning("files are not opened by the kernel: pyfuse3's handlers are others")
        return
    wrapped: dict[int, Any] = {_INIT: _Init(_wanting(made, _Init(found[_INIT])))}
    for position, kind in _BY_HANDLE.items():
        wrapped[position] = kind(_numbering(made, kind(found[position])))
    for position, callback in wrapped.items():
        handlers[position] = ctypes.cast(callback, ctypes.c_void_p).value
    made.by_number = True
    made.keep = tuple(wrapped.values())
    made.process_of = _process_of_requests()


def _wanting(made: Adjustments, original: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def init(data: int, connection: int) -> None:
        original(data, connection)
        capable = ctypes.c_uint.from_address(connection + _CAPABLE).value
        want = ctypes.c_uint.from_address(connection + _WANT)
        want.value |= capable & (_PARALLEL_DIROPS | _HANDLE_KILLPRIV | _CACHE_SYMLINKS)
        want.value &= ~_ATOMIC_O_TRUNC
        if capable & _EXPLICIT_INVAL_DATA:
            want.value = want.value & ~_AUTO_INVAL_DATA | _EXPLICIT_INVAL_DATA
        if capable & _HANDLE_KILLPRIV and made.session:
            made.keep += (initreply.complete(made.session),)

    return init


def _numbering(made: Adjustments, original: Callable[..., None]) -> Callable[..., None]:
    handle_at = ctypes.c_uint64.from_address

    def by_number(request: int, ino: int, *rest: int) -> None:
        made.request = request
        handle_at(rest[-1] + _HANDLE).value = ino
        original(request, ino, *rest)

    return by_number


def _process_of_requests() -> Callable[[int], int]:
    """Asks libfuse, which is loaded already, for the context of a request."""
    try:
        context = ctypes.PyDLL("libfuse3.so.3").fuse_req_ctx
    except (OSError, AttributeError) as error:
        log.warning("it is not known who reads: %s", error)
        return _nobody
    context.restype = ctypes.c_void_p
    context.argtypes = (ctypes.c_void_p,)

    def process_of(request: int) -> int:
        return ctypes.c_int.from_address(context(request) + _PID).value

    return process_of


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
            if name and elf.startswith(function + b"\0", names + name):
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
