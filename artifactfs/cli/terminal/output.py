"""How commands print: JSON, plain lines, or a live progress line on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import click


class Reporter(Protocol):
    """Takes progress messages of the control protocol."""

    def __call__(self, message: dict[str, Any]) -> None: ...


_TIMES = frozenset({"created", "time", "at", "outage_since"})
"""Fields that are seconds since 1970 within the program."""


def print_json(value: object, *, in_one_line: bool = False) -> None:
    """For programs of others: times are in ISO 8601, UTC. `in_one_line`: one of many."""
    click.echo(json_text(value, in_one_line=in_one_line))


def json_text(value: object, *, in_one_line: bool = False) -> str:
    return json.dumps(_with_times(value), indent=None if in_one_line else 2)


def _with_times(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: iso_time(one)
            if key in _TIMES and isinstance(one, (int, float))
            else _with_times(one)
            for key, one in value.items()
        }
    return [_with_times(one) for one in value] if isinstance(value, (list, tuple)) else value


def iso_time(seconds: float) -> str:
    """``2026-11-29T23:33:34.187Z``."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, as wide as their contents, which may be anybody's words."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def human_bytes(count: int | float | None) -> str:
    """``1.5 MiB``; ``?`` where unknown."""
    if count is None:
        return "?"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def human_seconds(seconds: float | None) -> str:
    """``12 s``, ``3 min``, ``2 h``, ``5 d``; ``never`` for None."""
    if seconds is None:
        return "never"
    if seconds < 120:
        return f"{seconds:g} s"
    for limit, divisor, unit in ((7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Reporter]:
    """Shows progress on stderr: a bar on a terminal, a line for each new stage elsewhere."""
    if quiet:
        yield lambda _message: None
    elif sys.stderr.isatty():
        with _bar(title) as reporter:
            yield reporter
    else:
        yield _lines(title)


def _lines(title: str) -> Reporter:
    shown = ""

    def report(message: dict[str, Any]) -> None:
        nonlocal shown
        stage = str(message.get("state") or message.get("stage") or "")
        if stage and stage != shown:
            shown = stage
            click.echo(f"{title}: {stage}", err=True)

    return report


@contextmanager
def _bar(title: str) -> Iterator[Reporter]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, detail="")

        def report(message: dict[str, Any]) -> None:
            stage = message.get("state") or message.get("stage")
            total, done = message.get("total"), message.get("done")
            detail = f"{done}/{total}" if total is not None else ""
            if message.get("bytes") is not None:
                detail = f"{detail} {human_bytes(message['bytes'])}".strip()
            description = f"{title}: {stage}" if stage else title
            bar.update(task, description=description, total=total, completed=done, detail=detail)

        yield report


def on_terminal() -> bool:
    """Whether what is printed is looked at as it comes."""
    return sys.stdout.isatty()


def printable(path: str) -> str:
    """Words or a path of others for a line of output: no terminal obeys them.

    Bytes that are no UTF-8, and controls, are escaped.
    """
    if path.isprintable():
        return path
    raw = path.encode("utf-8", "surrogateescape")
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
