"""The compiled part of `stamps` (``_stamps.c``)."""

def changed(folder: int, stamps: bytes, /) -> list[int] | None:
    """Where in `stamps` those begin that have another inode number or ctime, or are gone; None:
    these are many. `folder` is a descriptor; `stamps` holds for each an inode number (8 bytes,
    unsigned) and a ctime (8 bytes, in ns), both in the machine's order, a path relative to the
    folder, and a NUL. Other threads run meanwhile.

    Raises: ValueError where the last one is cut.
    """
