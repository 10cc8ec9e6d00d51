"""The compiled part of `stamps` (``_stamps.c``)."""

def are_current(folder: int, stamps: bytes, /) -> bool:
    """Whether each path has its inode number and ctime. `folder` is a descriptor; `stamps` holds
    for each an inode number (8 bytes, unsigned) and a ctime (8 bytes, in ns), both in the machine's
    order, a path relative to the folder, and a NUL. Other threads run meanwhile.

    Raises: ValueError where the last path does not end.
    """
