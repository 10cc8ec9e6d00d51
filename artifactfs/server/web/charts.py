"""Charts of the web page as SVG, drawn on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, FOOT = 720, 160, 18


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: where it stands, how high it is, what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    value: float
    title: str
    label: str


def bars(values: Sequence[tuple[str, float]], unit: str) -> list[Bar]:
    """Bars for (label, value) pairs, scaled to the highest; every fourth label is shown."""
    if not values:
        return []
    highest = max(value for _, value in values) or 1.0
    step = WIDTH / len(values)
    room = HEIGHT - FOOT
    return [
        Bar(
            x=round(number * step + 1, 1),
            y=round(room - value / highest * room, 1),
            width=round(step - 2, 1),
            height=round(value / highest * room, 1),
            value=value,
            title=f"{label}: {value:g} {unit}",
            label=label if number % 4 == 0 else "",
        )
        for number, (label, value) in enumerate(values)
    ]
