"""What the pages show, computed in worker threads."""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from artifactfs.server.content.differences import Diff, two_ends
from artifactfs.server.content.objects import Content, NoSuchContent
from artifactfs.server.events.analytics import GroupQuery, groups
from artifactfs.server.events.commits import CommitInfo, commit_info
from artifactfs.server.metadata.clock import iso, now_ms
from artifactfs.server.web.charts import Bar, bars

_HOUR_MS = 3_600_000
_REFS = 200


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One event type of the last day."""

    event_type: str
    count: int
    avg_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Activity:
    """The last 24 hours of an account."""

    operations: list[Bar]
    errors: list[Bar]
    durations: list[Bar]
    types: list[TypeRow]


def activity(db: Database, account_id: str) -> Activity:
    """Charts and a table of the last 24 hours."""
    now = now_ms()
    hours = [(now // _HOUR_MS - back) * _HOUR_MS for back in range(23, -1, -1)]
    since = {"datetime_geq": iso(hours[0])}
    return Activity(
        operations=_hourly(db, account_id, hours, {**since, "eventKind": "action"}, "count"),
        errors=_hourly(db, account_id, hours, {**since, "eventKind": "error"}, "count"),
        durations=_hourly(db, account_id, hours, {**since, "eventKind": "action"}, "p95"),
        types=_by_type(db, account_id, since),
    )


def _hourly(
    db: Database, account_id: str, hours: list[int], conditions: dict[str, str], figure: str
) -> list[Bar]:
    query = GroupQuery(account_id, ("datetimeHour",), 100, conditions, (), figure == "p95")
    found: dict[str, float] = {}
    for row in groups(db, query):
        value = row["count"] if figure == "count" else row["quantiles"]["durationMsP95"]
        found[row["dimensions"]["datetimeHour"]] = float(value)
    values = [(iso(hour)[11:16], found.get(iso(hour)[:19] + "Z", 0.0)) for hour in hours]
    return bars(values, "events" if figure == "count" else "ms")


def _by_type(db: Database, account_id: str, since: dict[str, str]) -> list[TypeRow]:
    query = GroupQuery(account_id, ("eventType",), 100, since, ("count_DESC",), True)
    return [
        TypeRow(
            row["dimensions"]["eventType"],
            row["count"],
            row["avg"]["durationMs"],
            row["quantiles"]["durationMsP95"],
        )
        for row in groups(db, query)
    ]


def ref_names(content: Content) -> list[str]:
    """Branches and tags for the menu, at most 200."""
    return [ref.name for ref in content.refs() if ref.name.startswith("refs/")][:_REFS]


def split_path(path: str) -> list[tuple[str, str]]:
    """(name, path up to it) for each directory on the way."""
    parts = [part for part in path.split("/") if part]
    return [(part, "/".join(parts[: number + 1])) for number, part in enumerate(parts)]


def commit_and_ends(
    content: Content, hexadecimal: str
) -> tuple[CommitInfo, tuple[str, str] | None]:
    """A commit, and what to compare for its changes; None at the edge of a shallow history.

    Raises: NoSuchContent.
    """
    commit = commit_info(content.commit(hexadecimal))
    try:
        return commit, two_ends(content, None, hexadecimal)
    except NoSuchContent:
        return commit, None


def diff_lines(diff: Diff | None) -> list[tuple[str, str]]:
    """The lines of a diff as (class, text)."""
    if diff is None or not diff.data:
        return []
    kinds = {"+": "added", "-": "removed", "@": "place", "d": "file"}
    text = diff.data.decode("utf-8", "replace").removesuffix("\n")
    lines = [(kinds.get(line[:1], ""), line) for line in text.split("\n")]
    return lines if diff.whole else [*lines, ("place", "… the rest is too long to show")]
