"""Standard input, output and error of a program: given when they are closed, let go at the end."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def open_standard_streams() -> None:
    """Where 0, 1 or 2 is closed, give it to nobody: the next file that somebody opens would get its
    number, and what any program prints would be written into that file."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:  # `print` would take stdout for it
        sys.stderr = os.fdopen(2, "w", closefd=False)


def leave(status: int) -> NoReturn:
    """Exit with `status`; where that is 0 and stdout did not take everything, with 1, and with 141
    where nobody reads it.

    The interpreter tries once more to write what a stream did not take, and when that fails, too,
    exits with 120 whatever the status was. So such a stream is given to nobody before.
    """
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as error:
            _give_away(1)
            if status == 0 and isinstance(error, BrokenPipeError):
                status = 141
            elif status == 0:
                print(f"error: {error.strerror}", file=sys.stderr)
                status = 1
    try:
        sys.stderr.flush()
    except OSError:
        _give_away(2)
    sys.exit(status)


def _give_away(descriptor: int) -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, descriptor)
    os.close(nobody)
