"""Changes to what pyfuse3 tells libfuse, by a small compiled extension between the two.

- **No open, no opendir** (`kernel-open`, `kernel-opendir`). When they are answered with ENOSYS, the
  kernel from then on opens files and directories by itself and keeps what was read: a second
  ``grep -r``, ``find`` or ``ls -lR`` sends no request at all, instead of two for each file and four
  for each directory. (And with `create` answered so, a new file is one `mknod`, without the
  `release` at its end.) pyfuse3 passes on only handles, which then do not exist, so it is given the
  inode number for one. With ``ATOMIC_O_TRUNC`` the kernel would leave the truncation of ``O_TRUNC``
  to an `open` that is not sent any more; without, it sends a `setattr`.
- **Explicit invalidation** (`keep-pages`). The kernel does not drop the pages of a file because its
  mtime is another than before, so what was just written is read from memory, and it asks for no
  attributes before each read. Only this process changes anything on its own, and says so
  (`StaleEntries`).
- **Parallel look-ups**. The kernel then does not lock a directory while one of its names is looked
  up, so that a look-up that waits does not stop the others.
- **The end of a directory**. The kernel asks once more behind the last entry of each. That is
  answered without Python: half of the requests of a first ``find``.
- **Look-ups of offered objects** (`offered-lookups`). Before git writes a tree it looks for each
  blob of it, with two requests each. Python decides who sees what (`offered.py`); what it has told
  a program is repeated here for a moment.
- **Listings ahead** (`listings-ahead`). Directories that a walk comes to next are listed while we
  wait for it, and the extension answers for them (`fs/listing/ahead.py`).
- **Set-ID bits**. We take them away (`privileges`), so the kernel asks for nothing before a chown.
- **Request headers**. pyfuse3 does not say who reads or writes. What the kernel sends does, where
  libfuse reads it into memory and does not splice it into a pipe.

`_interposer.c` does it: loaded before pyfuse3, it is what pyfuse3 finds under libfuse's names. It
may be missing (no compiler at the installation), be compiled for another libfuse, or not be called
(pyfuse3 was loaded first, or has libfuse linked in). Each is noticed here; then the mount is as
pyfuse3 makes it, with more requests, and `Features` says why.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from artifactfs.errors import InvalidInput
from artifactfs.features import Features, Version, disabled_features, dotted, version_of
from artifactfs.fs.kernel.fastloop import Hooks

_NAME = "artifactfs.fs.kernel._interposer"
_NEW_ABI = (3, 17)
"""libfuse changed structures and became ``libfuse3.so.4``; before and since, they only grew."""

END_OF_LISTING = (1 << 32) - 1
"""Bits of the offset from which a directory is read on that are all set behind its last entry."""

_OLDER = "the extension is older: install ArtifactFS once more"

_loaded: Any = None
_missing = "it was not loaded"


def load() -> None:
    """Load the extension, for the whole process. To be called before pyfuse3 is imported: its
    names are bound then where it was linked with ``-z now``."""
    global _loaded, _missing
    try:
        if "extension" in disabled_features():
            return
    except InvalidInput:
        pass  # said where a mount or a command begins
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        _loaded = import_module(_NAME)
    except ModuleNotFoundError:
        _missing = (
            "it was not compiled: install gcc, libfuse3-dev and python3-dev,"
            " then ArtifactFS once more"
        )
    except ImportError as error:
        _missing = f"it cannot be loaded: {error}"
    finally:
        sys.setdlopenflags(flags)


def probe(features: Features, pyfuse3: ModuleType) -> None:
    """Find out what can be known without a mount."""
    release = libfuse_release(pyfuse3)
    running = None if release is None else version_of(release)
    features.learn(
        kernel=version_of(os.uname().release),
        libfuse=running,
        pyfuse3=version_of(pyfuse3.__version__),
    )
    if _loaded is None:
        features.lacks("extension", _missing)
        return
    compiled = divmod(_loaded.COMPILED_FOR, 100)
    if running is not None and not _fits(compiled, running):
        features.lacks(
            "extension",
            f"it was compiled for libfuse {dotted(compiled)}, pyfuse3 uses {dotted(running)}:"
            " install ArtifactFS once more",
        )


def _fits(compiled: Version, running: Version) -> bool:
    return compiled <= running and (compiled >= _NEW_ABI) == (running >= _NEW_ABI)


def libfuse_release(pyfuse3: ModuleType) -> str | None:
    """Of the libfuse that `pyfuse3` is linked to; None where that cannot be found."""
    try:
        release = ctypes.CDLL(str(pyfuse3.__file__)).fuse_pkgversion
    except (OSError, AttributeError):
        return None
    release.restype = ctypes.c_char_p
    return str(release().decode())


class Offers(Protocol):
    """Of the extension, for `OfferedObjects`; meanings are in ``_interposer.pyi``."""

    def offer_objects(
        self,
        oids: bytearray,
        beside: bytes,
        top: int,
        folders: int,
        objects: int,
        uid: int,
        gid: int,
        time_ns: int,
        size: int,
        valid_s: float,
        /,
    ) -> None: ...
    def admit(self, pid: int, for_s: float, /) -> None: ...


class Keeps(Protocol):
    """Of the extension, for `ListingsAhead`; meanings are in ``_interposer.pyi``."""

    def keep_listing(self, ino: int, reply: bytes, /) -> bool: ...
    def want_listings(self, wanted: bool, /) -> None: ...
    def listing_room(self) -> int: ...
    def kept_listings(self) -> list[int]: ...
    def take_listings_back(self) -> list[int]: ...


class Session:
    """What one mount has of the extension: make it before ``pyfuse3.init``."""

    def __init__(self, features: Features, pyfuse3: ModuleType) -> None:
        self.features = features
        self.kernel_opens = self.kernel_opens_directories = False
        """Answer `open` and `create`, and `opendir`, with ENOSYS."""
        self.caller: Callable[[], int] | None = None
        """Tells the process that a read or write is for. To be asked before the handler waits for
        anything."""
        self.unique: Callable[[], int] | None = None
        """Tells the kernel's number of the request, in the same way."""
        self.offers: Offers | None = None
        """Answers look-ups of offered objects."""
        self.keeps: Keeps | None = None
        """Answers for directories that were listed ahead."""
        self.hooks = Hooks()
        self._begun = False
        probe(features, pyfuse3)
        if features.on("extension"):
            _loaded.prepare()

    def begin(self) -> None:
        """To be called by `Operations.init`, in the middle of the kernel's FUSE_INIT: decides what
        this mount will have. Where that is over it changes nothing."""
        if self._begun:
            return
        self._begun = True
        features = self.features
        if not features.on("extension"):
            return
        if not _loaded.called():
            features.lacks("extension", "pyfuse3 does not call libfuse through it")
            return
        features.learn(capable=_loaded.capable())
        self.kernel_opens = features.on("kernel-open")
        self.kernel_opens_directories = features.on("kernel-opendir")
        _loaded.choose(*features.capabilities(), self.kernel_opens or self.kernel_opens_directories)
        if hasattr(_loaded, "answer_ends"):  # else it was compiled before there was that
            _loaded.answer_ends(END_OF_LISTING)
        if features.on("request-headers"):
            self.caller, self.unique = _loaded.caller, _loaded.unique
        if not hasattr(_loaded, "offer_objects"):
            features.lacks("offered-lookups", _OLDER)
        if features.on("offered-lookups"):
            self.offers = _loaded
        if not hasattr(_loaded, "keep_listing"):
            features.lacks("listings-ahead", _OLDER)
        if features.on("listings-ahead"):
            self.keeps = _loaded

    def answered(self) -> dict[str, int]:
        """How many requests were answered without Python."""
        if not self.features.on("extension") or not hasattr(_loaded, "answered"):
            return {}
        return dict(zip(("lookup", "readdir"), _loaded.answered()[:2], strict=True))

    def answered_ahead(self) -> int:
        """How many directories were listed ahead and asked for then."""
        return int(_loaded.answered()[2]) if self.keeps is not None else 0

    def check(self) -> None:
        """To be called when FUSE_INIT is answered: what did not come to pass?"""
        if self.features.on("set-id-bits") and not _loaded.killpriv_told():
            self.features.lacks("set-id-bits", "libfuse does not tell the kernel")
