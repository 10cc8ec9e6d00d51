"""The compiled extension (``_interposer.c``); `extension` is the only one to use it."""

COMPILED_FOR: int
"""The libfuse whose header it was compiled with: 100 * major + minor."""

def prepare() -> None:
    """Change what the next ``pyfuse3.init`` gives to libfuse. Forgets the mount before."""

def called() -> bool:
    """Whether a session was made through here since `prepare`, and its handlers are ours."""

def capable() -> int:
    """``FUSE_CAP_*`` that kernel and libfuse offer. Known from pyfuse3's `init` handler on."""

def choose(add: int, drop: int, by_number: bool, /) -> None:
    """In pyfuse3's `init` handler: which ``FUSE_CAP_*`` to want besides, and which not.

    `by_number`: give pyfuse3 the inode number as the handle of a file or directory.
    """

def answer_ends(bits: int, /) -> None:
    """Answer each `readdir` from an offset with all these bits with nothing, and do not pass it on;
    0: pass on all. In pyfuse3's `init` handler, which begins with 0."""

def killpriv_told() -> bool:
    """Whether the kernel was told of FUSE_HANDLE_KILLPRIV."""

def caller() -> int:
    """The process that the last request is for; 0: not known. Ask before the first `await`."""

def unique() -> int:
    """The kernel's number of the last request, bit 63 set where it was sent again; 0: not known.
    Ask before the first `await`."""

def offer_objects(
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
) -> None:
    """Answer look-ups in the directory `top` and its folders by those who are admitted, and list
    the folders, in place of what was offered before; admit nobody yet.

    `oids` and `beside`, sorted, 20 bytes each, may not change until there is another offer. Folder
    N has the number `folders` + N, an oid that of its position + `objects`; positions of those
    `beside` begin at 2**31. All belong to `uid` and `gid`, are of `time_ns`, and the objects are
    symlinks of `size` bytes; the kernel keeps the attributes for `valid_s`, the names not at all.
    What is not there is passed on.
    """

def admit(pid: int, for_s: float, /) -> None:
    """Answer the thread `pid`, which waits for an answer now, for so long, or until it executes
    another program."""

def answered() -> tuple[int, int, int]:
    """How many look-ups and listings were answered without Python since `prepare`, and how many of
    the latter were kept."""

def keep_listing(ino: int, reply: bytes, /) -> bool:
    """Answer the first `readdir` of the directory `ino` from its beginning with `reply`, all of
    its ``fuse_direntplus`` (linux/fuse.h), if that fits. False: eight others are kept."""

def want_listings(wanted: bool, /) -> None:
    """Whether Python gets its turn after each end of a directory, for `keep_listing`.
    `take_listings_back` sets it to False."""

def listing_room() -> int:
    """The size of the reply that was asked for with the last `readdir` from a beginning, bytes."""

def kept_listings() -> list[int]:
    """The directories that nobody has asked for yet."""

def take_listings_back() -> list[int]:
    """Keep none any more, and return the directories that nobody has asked for."""
