"""Listings that outlive their process, as the next one finds them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifactfs.fs.listing import unfinished
from artifactfs.fs.listing.unfinished import UnfinishedListings


def test_of_a_damaged_file_nothing_is_believed(tmp_path: Path) -> None:
    file = tmp_path / "listings"
    first = UnfinishedListings()
    first.outlive(file, taken_over=False)
    listing = first.begin([b"one", b"two"], {})
    first.keep(listing)
    first.close()
    content = file.read_bytes()
    cookie = listing.cookie(2)

    def found() -> list[bytes] | None:
        after = UnfinishedListings()
        after.outlive(file, taken_over=True)
        after.close()
        resumed, position = after.resume(cookie)
        assert position == 2
        return None if resumed is None else resumed.names

    assert found() == [b"one", b"two"]
    flips = [
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(len(content))
    ]
    for damaged in (b"", content[:-1], content[: len(content) // 2], bytes(len(content)), *flips):
        file.write_bytes(damaged)
        assert found() is None


def test_what_is_not_read_to_its_end_is_found_behind_many_that_are(tmp_path: Path) -> None:
    """A slow reader, and more short listings than are kept."""
    before = UnfinishedListings()
    before.outlive(tmp_path / "listings", taken_over=False)
    slow = before.begin([b"one", b"two"], {})
    before.keep(slow)
    for number in range(1_000):
        listing = before.begin([b"%d" % number], {})
        before.keep(listing)
        before.drop(listing)
    before.close()
    after = UnfinishedListings()
    after.outlive(tmp_path / "listings", taken_over=True)
    after.keep(after.begin([b"another"], {}))
    resumed, _position = after.resume(slow.cookie(2))
    assert resumed is not None and resumed.names == [b"one", b"two"]
    after.close()


def test_listings_are_there_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call the process that goes on with the mount dies at, the next one finds them."""
    before = UnfinishedListings()
    before.outlive(tmp_path / "listings", taken_over=False)
    slow = before.begin([b"one", b"two"], {})
    before.keep(slow)
    before.close()
    content = (tmp_path / "listings").read_bytes()
    monkeypatch.setattr(unfinished, "_FILE_BYTES", 100)
    for last in range(1, 60):
        (tmp_path / "listings").write_bytes(content)
        between, calls = UnfinishedListings(), itertools.count(1)

        def dies(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
            if next(calls) == last:  # noqa: B023 - of this round
                raise Died
            return call(*args, **options)

        with monkeypatch.context() as patch:
            for name in ("ftruncate", "pwrite", "rename"):
                patch.setattr(os, name, functools.partial(dies, getattr(os, name)))
            with contextlib.suppress(Died):
                between.outlive(tmp_path / "listings", taken_over=True)
                for number in range(20):
                    between.keep(between.begin([b"%d" % number], {}))
        between.close()
        after = UnfinishedListings()
        after.outlive(tmp_path / "listings", taken_over=True)
        resumed, _position = after.resume(slow.cookie(2))
        after.close()
        assert resumed is not None and resumed.names == [b"one", b"two"], last


class Died(BaseException):
    """The process did."""
