"""What is kept of a file that only the kernel refers to."""

from __future__ import annotations

import random

from artifactfs.fs.inodes.compact import MOST_REFERENCES, NOWHERE, CompactFiles
from artifactfs.fs.inodes.inode import Directory
from artifactfs.inode_numbers import derive_ino


def directory(ino: int = 1) -> Directory:
    return Directory(ino, None, b"", 0o040755, None)


def test_a_reference_more_and_one_less() -> None:
    files, folder = CompactFiles(), directory()
    assert files.hold(77, folder, 3)
    assert files.hold(77, folder, 3)
    assert files.find(77) == (folder, 3, 2)
    assert (len(files), folder.children) == (1, 1)
    assert files.forget(77, 1) is None
    assert files.find(77) == (folder, 3, 1)
    assert files.forget(77, 1) is folder
    assert files.find(77) is None
    assert (len(files), folder.children, folder.compact) == (0, 0, -1)


def test_a_number_that_is_known_from_elsewhere_is_refused() -> None:
    files, folder, other = CompactFiles(), directory(1), directory(2)
    assert files.hold(77, folder, 3)
    assert not files.hold(77, other, 3)
    assert not files.hold(77, folder, 4)
    assert files.find(77) == (folder, 3, 1)


def test_too_many_references_are_refused() -> None:
    files, folder = CompactFiles(), directory()
    assert files.hold(77, folder, 3, MOST_REFERENCES)
    assert not files.hold(77, folder, 3)
    assert files.find(77) == (folder, 3, MOST_REFERENCES)


def test_a_position_beyond_all_is_unknown() -> None:
    files, folder = CompactFiles(), directory()
    assert files.hold(77, folder, 1 << 40)
    assert files.find(77) == (folder, NOWHERE, 1)
    assert files.hold(77, folder, 1 << 40)


def test_another_order_of_the_entries() -> None:
    files, folder, other = CompactFiles(), directory(1), directory(2)
    for position, ino in enumerate((77, 78, 79)):
        assert files.hold(ino, folder, position)
    assert files.hold(80, other, 9)
    files.reindex(folder, [79, 1000, 80, 77])
    assert files.find(77) == (folder, 3, 1)
    assert files.find(78) == (folder, 1, 1)  # it is not there any more
    assert files.find(79) == (folder, 0, 1)
    assert files.find(80) == (other, 9, 1)


def test_against_a_dictionary() -> None:
    rng = random.Random(1)
    files = CompactFiles()
    folders = [directory(number) for number in range(1, 30)]
    inos = {
        derive_ino(b"", folder.ino, b"%d" % n): (folder, n) for folder in folders for n in range(50)
    }
    known: dict[int, int] = {}
    for _ in range(20_000):
        ino = rng.choice(list(inos))
        folder, position = inos[ino]
        if rng.random() < 0.5:
            assert files.hold(ino, folder, position)
            known[ino] = known.get(ino, 0) + 1
        elif ino in known:
            count = rng.randint(1, known[ino])
            known[ino] -= count
            gone = files.forget(ino, count)
            assert gone is (None if known[ino] else folder)
            if not known[ino]:
                del known[ino]
    assert len(files) == len(known)
    for ino, (folder, position) in inos.items():
        expected = (folder, position, known[ino]) if ino in known else None
        assert files.find(ino) == expected
    for folder in folders:
        assert folder.children == sum(1 for ino in known if inos[ino][0] is folder)
