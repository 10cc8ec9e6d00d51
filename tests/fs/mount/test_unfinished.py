"""Listings that outlive their process, as the next one finds them."""

from __future__ import annotations

from pathlib import Path

from artifactfs.fs.mount.unfinished import UnfinishedListings


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
