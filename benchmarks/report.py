"""Results as tables on the terminal, as JSON, and as a page with a chart."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measures import Run
from benchmarks.targets import Figures, summary

OURS = "artifact-fs"
BASE = "git clone"
SMALLEST_BASE_S = 1e-4
"""A ratio to less than that says nothing: there was nothing to do."""

CHARTED = (
    "first ls",
    "first file",
    "git status, first",
    "git status, second",
    "find, warm",
    "ls -lR, warm",
    "grep -r, cold",
    "grep -r, warm",
    "switch to another release",
    "commit of one line",
    "cp -a",
)


@dataclass(slots=True)
class Result:
    """All runs of one contender on one workload with one delay."""

    workload: str
    rtt_ms: float
    contender: str
    runs: list[Run]

    def values(self, measure: str) -> list[float]:
        found = [run.figures.get(measure) for run in self.runs]
        return [value for value in found if value is not None]


def is_bytes(measure: str) -> bool:
    return measure.startswith(("bytes", "worker"))


def format_figure(measure: str, values: list[float]) -> str:
    """The median, and how far the runs lie apart."""
    if not values:
        return "-"
    middle = statistics.median(values)
    if measure.startswith("requests"):
        return f"{middle:.0f}"
    scale, unit, digits = (1e-6, "MB", 1) if is_bytes(measure) else (1e3, "ms", 0)
    if not is_bytes(measure) and middle < 0.1:
        digits = 1
    text = f"{middle * scale:,.{digits}f} {unit}"
    spread = (max(values) - min(values)) / 2 / middle if middle else 0
    return f"{text} ±{spread:.0%}" if len(values) > 1 else text


def figures_of(results: Iterable[Result]) -> Figures:
    """Every value of every measure."""
    return {
        (result.workload, result.rtt_ms, result.contender, measure): values
        for result in results
        for measure in measures_of([result])
        if (values := result.values(measure))
    }


def measures_of(results: Iterable[Result]) -> list[str]:
    """Every measure, in the order in which it was taken."""
    seen: dict[str, None] = {}
    for result in results:
        for run in result.runs:
            seen |= dict.fromkeys(run.figures)
    return list(seen)


def ratio(results: list[Result], measure: str) -> str:
    """Ours in relation to a plain clone."""
    by_name = {result.contender: result.values(measure) for result in results}
    ours, base = by_name.get(OURS), by_name.get(BASE)
    if not ours or not base or statistics.median(base) < SMALLEST_BASE_S:
        return ""
    return f"{statistics.median(ours) / statistics.median(base):.2f}"


def groups(results: list[Result]) -> list[tuple[str, float, list[Result]]]:
    keys = dict.fromkeys((result.workload, result.rtt_ms) for result in results)
    return [
        (workload, rtt, [r for r in results if (r.workload, r.rtt_ms) == (workload, rtt)])
        for workload, rtt in keys
    ]


def rows(group: list[Result]) -> list[list[str]]:
    return [
        [measure]
        + [format_figure(measure, result.values(measure)) for result in group]
        + [ratio(group, measure)]
        for measure in measures_of(group)
    ]


def print_tables(results: list[Result]) -> None:
    console = Console(width=150)
    for workload, rtt, group in groups(results):
        table = Table(title=f"{workload}, {rtt:g} ms of round trip, {len(group[0].runs)} runs")
        table.add_column("")
        for result in group:
            table.add_column(result.contender, justify="right")
        table.add_column("ratio to git clone", justify="right")
        for row in rows(group):
            table.add_row(*row)
        console.print(table)


def machine() -> str:
    """One line on where the figures come from."""
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
    cores = len(Path("/proc/cpuinfo").read_text().split("processor\t")) - 1
    return (
        f"{cores} cores, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, {git.stdout.strip()}"
    )


def write_json(results: list[Result], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [
        {
            "workload": result.workload,
            "rtt_ms": result.rtt_ms,
            "contender": result.contender,
            "runs": [run.figures for run in result.runs],
        }
        for result in results
    ]
    path.write_text(json.dumps({"machine": machine(), "results": data}, indent=1) + "\n")


def read_json(path: Path) -> tuple[str, list[Result]]:
    """Return what `write_json` wrote: the machine and the results."""
    loaded = json.loads(path.read_text())
    results = [
        Result(one["workload"], one["rtt_ms"], one["contender"], [Run(f) for f in one["runs"]])
        for one in loaded["results"]
    ]
    return loaded["machine"], results


def write_page(results: list[Result], page: Path, *, where: str) -> None:
    """Write `page` (Markdown) and the chart beside it."""
    parts = [
        "# Benchmarks",
        "",
        "Made by `scripts/benchmark`. Medians; ± is half of the spread over the runs. Everything "
        "in one table ran in the same run of the script, on the same machine "
        f"({where}), against the bundled server through a proxy that adds the round trip. "
        "Take ratios from it: absolute times vary by machine.",
        "",
        "## Targets",
        "",
        "| what | where | target | found | met |",
        "|---|---|---|---:|---|",
        *("| " + " | ".join(row) + " |" for row in summary(figures_of(results))),
        "",
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    for number, (workload, rtt, group) in enumerate(groups(results)):
        chart = f"benchmark-{number + 1}.svg"
        title = f"{workload}, {rtt:g} ms of round trip"
        (page.parent / chart).write_text(chart_svg(title, group))
        header = ["", *(result.contender for result in group), "ratio to git clone"]
        parts += [f"## {title}", "", f"![{title}]({chart})", ""]
        parts += ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
        parts += ["| " + " | ".join(row) + " |" for row in rows(group)]
        parts.append("")
    page.write_text("\n".join(parts))


COLOURS = ("#0b6e4f", "#8d99ae", "#bfa5d6", "#e0a458", "#c44536")


def chart_svg(title: str, group: list[Result]) -> str:
    """Horizontal bars on a logarithmic scale of milliseconds."""
    import math

    measures = [m for m in CHARTED if any(result.values(m) for result in group)]
    bar, gap, left, width = 12, 14, 190, 640
    low, high = -1.0, 5.0  # 0.1 ms … 100 s
    row_height = bar * len(group) + gap
    height = 60 + row_height * len(measures) + 24 + 18 * len(group)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 100}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="24" font-size="15">'
        f"{escape(title)} (logarithmic)</text>",
    ]
    for power in range(int(low), int(high) + 1):
        x = left + (power - low) / (high - low) * width
        label = f"{10**power:g} ms" if power < 3 else f"{10 ** (power - 3):g} s"
        out.append(
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="44" y2="{46 + row_height * len(measures)}" '
            f'stroke="#ddd"/><text x="{x:.0f}" y="40" text-anchor="middle" fill="#777" '
            f'font-size="10">{label}</text>'
        )
    y = 52
    for measure in measures:
        middle = y + bar * len(group) / 2 + 4
        out.append(f'<text x="{left - 8}" y="{middle:.0f}" text-anchor="end">{measure}</text>')
        for index, result in enumerate(group):
            if values := result.values(measure):
                ms = statistics.median(values) * 1e3
                length = (math.log10(max(ms, 0.11)) - low) / (high - low) * width
                out.append(
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" '
                    f'fill="{COLOURS[index % len(COLOURS)]}"/><text x="{left + length + 4:.0f}" '
                    f'y="{y + 9}" font-size="9" fill="#555">{format_figure(measure, [ms / 1e3])}'
                    "</text>"
                )
            y += bar
        y += gap
    for index, result in enumerate(group):
        out.append(
            f'<rect x="{left}" y="{y}" width="12" height="12" fill="{COLOURS[index]}"/>'
            f'<text x="{left + 18}" y="{y + 10}">{escape(result.contender)}</text>'
        )
        y += 18
    return "\n".join([*out, "</svg>", ""])
