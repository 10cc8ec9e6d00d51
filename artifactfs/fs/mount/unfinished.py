"""Listings of directories that the kernel has not read to their end yet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from artifactfs.git.objects.database import Oid

_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_LAST_LISTING = (1 << 31) - 1
"""Cookies are positive 64-bit numbers."""

_LISTINGS_KEPT = 256

_END = _POSITION_MASK
"""The position behind the last entry: the kernel asks once more there, for nothing."""


class Listing:
    """The names of a directory as they were when it was (re)wound. Nobody opens or closes
    directories (see `extension`), so each position that the kernel is given names the listing."""

    __slots__ = ("_end", "_first", "names", "number", "sizes")

    def __init__(self, number: int, names: list[bytes], sizes: Mapping[Oid, int]) -> None:
        self.number = number
        self.names = names
        self.sizes = sizes
        """Of the blobs in the directory, as far as they were known."""
        self._first = number << _POSITION_BITS
        self._end = len(names) + 2

    def cookie(self, position: int) -> int:
        """Where `readdir` goes on after the entry before `position`."""
        return self._first | (position if position < self._end else _END)


def is_at_end(cookie: int) -> bool:
    return cookie & _POSITION_MASK == _END


class UnfinishedListings:
    """Listings that did not fit into one reply, the most recently used ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Listing] = OrderedDict()
        self._next = 1

    def begin(self, names: list[bytes], sizes: Mapping[Oid, int]) -> Listing:
        """A new listing; it is forgotten unless it is kept."""
        listing = Listing(self._next, names, sizes)
        self._next = self._next % _LAST_LISTING + 1
        return listing

    def keep(self, listing: Listing) -> None:
        self._kept[listing.number] = listing
        self._kept.move_to_end(listing.number)
        while len(self._kept) > _LISTINGS_KEPT:
            self._kept.popitem(last=False)

    def drop(self, listing: Listing) -> None:
        """It was read to its end."""
        self._kept.pop(listing.number, None)

    def resume(self, cookie: int) -> tuple[Listing | None, int]:
        """The listing and the position that `cookie` names; no listing where a new one begins,
        or the old one was complete."""
        position = cookie & _POSITION_MASK
        return self._kept.get(cookie >> _POSITION_BITS) if position else None, position
