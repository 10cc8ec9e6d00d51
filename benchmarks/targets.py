"""What the mount is meant to reach, and whether it did: the table at the top of the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

OURS = "artifact-fs"

Figures = Mapping[tuple[str, float, str, str], list[float]]
"""Values by (workload, delay in ms, contender, measure)."""


@dataclass(frozen=True, slots=True)
class Target:
    """`measure` of ours is at most `limit` times `of` (a measure; ours as well by default) of
    `base`; without a `base`, at most `limit` in the measure's own unit.

    `only` restricts it to workloads whose name begins so.
    """

    text: str
    measure: str
    limit: float
    base: str | None = "git clone"
    of: str | None = None
    only: str = ""


TARGETS = (
    Target("first `ls`", "first ls", 0.1, only="Django"),
    Target("first file read", "first file", 0.1, only="Django"),
    Target("first file read", "first file", 0.2, "git clone --filter=blob:none", only="Django"),
    Target("first file read", "first file", 1.0, "git clone --depth 1"),
    Target("first `git status`", "git status, first", 1.0),
    Target("next `git status`", "git status, second", 1.0),
    Target("requests of both", "requests of both", 0, None),
    Target("bytes that a commit of one line downloads", "bytes of that commit", 65_536, None),
    Target("`find`, warm", "find, warm", 2.0),
    Target("`ls -lR`, warm", "ls -lR, warm", 3.0),
    Target("`grep -r`, warm", "grep -r, warm", 3.0),
    Target("`artifact-fs switch`", "switch to another release", 0.2, None),
    Target("`artifact-fs switch` back", "switch back", 0.2, None),
    Target("`git status` after it", "git status after switch", 1.0),
    Target("full hydration", "full hydration", 1.5, OURS, "raw fetch of the root tree"),
    Target("large file, sequential", "large file, sequential", 2.0),
)
FLAT = ("first ls", "worker RSS")
"""At most `FLAT_LIMIT` times what it is for the smallest synthetic repository."""
FLAT_LIMIT = 1.5


def summary(figures: Figures) -> Iterator[list[str]]:
    """One row for each target and workload: what, where, target, found, met."""
    places = list(dict.fromkeys((workload, rtt) for workload, rtt, _, _ in figures))
    for target in TARGETS:
        for workload, rtt in places:
            if workload.startswith(target.only):
                yield from _row(target, figures, workload, rtt)
    synthetic = [place for place in places if place[0].startswith("synthetic")]
    for measure in FLAT:
        values = [(place, _median(figures, *place, OURS, measure)) for place in synthetic]
        known = [(place, value) for place, value in values if value]
        for (workload, rtt), value in known[1:]:
            times = value / known[0][1]
            text = f"{measure}, against {known[0][0][0]}"
            limit = f"≤ {FLAT_LIMIT:g}"
            yield [text, _where(workload, rtt), limit, f"{times:.2f}", _met(times, FLAT_LIMIT)]


def _row(target: Target, figures: Figures, workload: str, rtt: float) -> Iterator[list[str]]:
    ours = _median(figures, workload, rtt, OURS, target.measure)
    if ours is None:
        return
    if target.base is None:
        limit, found = _plain(target.measure, target.limit), _plain(target.measure, ours)
        met = _met(ours, target.limit)
        yield [target.text, _where(workload, rtt), f"≤ {limit}", found, met]
        return
    theirs = _median(figures, workload, rtt, target.base, target.of or target.measure)
    if not theirs:
        return
    base = f"`{target.base}`" if target.of is None else target.of
    limit = f"≤ {target.limit:g} times {base}"
    times = ours / theirs
    yield [
        target.text,
        _where(workload, rtt),
        limit,
        f"{times:.2f}",
        _met(times, target.limit),
    ]


def _median(
    figures: Figures, workload: str, rtt: float, contender: str, measure: str
) -> float | None:
    values = figures.get((workload, rtt, contender, measure))
    return statistics.median(values) if values else None


def _plain(measure: str, value: float) -> str:
    if measure.startswith("requests"):
        return f"{value:.0f}"
    if measure.startswith("bytes"):
        return f"{value / 1024:.0f} KB"
    return f"{value * 1000:.0f} ms"


def _where(workload: str, rtt: float) -> str:
    return f"{workload.partition(' (')[0]}, {rtt:g} ms"


def _met(value: float, limit: float) -> str:
    return "yes" if value <= limit else "**no**"
