"""A program that changes a tree without end: `python burst.py TOP SEED LOG`.

Step N depends on SEED and N alone, and LOG gets a line once it was acknowledged. So whoever knows
how many lines there are can do the same elsewhere.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

_GONE = (errno.ENOTCONN, errno.ECONNABORTED)

NAMES = ("README", "src", "docs", "a", "b", "c", "f1.c", "deep")


def step(top: Path, seed: int, number: int) -> None:
    """One system call that changes something (or fails: then it does so everywhere)."""
    generator = random.Random(f"{seed}.{number}")

    def path() -> Path:
        return top.joinpath(*generator.choices(NAMES, k=generator.randint(1, 3)))

    one, other, value = path(), path(), generator.randint(0, 20_000)
    actions: tuple[Callable[[], object], ...] = (
        lambda: os.close(os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)),
        lambda: _write(one, value),
        lambda: _write(one, value),
        lambda: os.truncate(one, value),
        lambda: os.mkdir(one),
        lambda: os.rename(one, other),
        lambda: os.rename(one, other),
        lambda: os.link(one, other),
        lambda: os.symlink(str(value), one),
        lambda: os.unlink(one),
        lambda: os.rmdir(one),
        lambda: os.chmod(one, 0o600 | value & 0o77) if not one.is_symlink() else None,
    )
    try:
        generator.choice(actions)()
    except OSError as error:
        if error.errno in _GONE:
            raise


def _write(path: Path, value: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, b"%d" % value * 10, value)
    finally:
        os.close(descriptor)


def replay(top: Path, seed: int, steps: int) -> None:
    for number in range(steps):
        step(top, seed, number)


def main() -> None:
    top, seed, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    with open(log, "ab", buffering=0) as lines:
        number = 0
        while True:
            step(top, seed, number)
            lines.write(b".\n")
            number += 1


if __name__ == "__main__":
    main()
