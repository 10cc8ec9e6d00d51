"""What the pages show, computed in worker threads."""

from __future__ import annotations

from dataclasses import dataclass

from artifactfs.server.content.differences import Diff, two_ends
from artifactfs.server.content.objects import Blob, Content, Entry, EntryType, NoSuchContent
from artifactfs.server.events.analytics import GroupQuery, groups
from artifactfs.server.events.commits import CommitInfo, commit_info
from artifactfs.server.metadata.clock import iso, now_ms
from artifactfs.server.metadata.database import Transaction
from artifactfs.server.web.charts import Bar, bars
from artifactfs.server.web.readme import README_BYTES, find_readme

_HOUR_MS = 3_600_000
_REFS = 200
_LOOK_BACK_S = 0.3
"""How long to look for the last commits of the files of a folder."""


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


def activity(tx: Transaction, account_id: str) -> Activity:
    """Charts and a table of the last 24 hours."""
    now = now_ms()
    hours = [(now // _HOUR_MS - back) * _HOUR_MS for back in range(23, -1, -1)]
    since = {"datetime_geq": iso(hours[0])}
    return Activity(
        operations=_hourly(tx, account_id, hours, {**since, "eventKind": "action"}, "count"),
        errors=_hourly(tx, account_id, hours, {**since, "eventKind": "error"}, "count"),
        durations=_hourly(tx, account_id, hours, {**since, "eventKind": "action"}, "p95"),
        types=_by_type(tx, account_id, since),
    )


def _hourly(
    tx: Transaction, account_id: str, hours: list[int], conditions: dict[str, str], figure: str
) -> list[Bar]:
    query = GroupQuery(account_id, ("datetimeHour",), 100, conditions, (), figure == "p95")
    found: dict[str, float] = {}
    for row in groups(tx, query):
        value = row["count"] if figure == "count" else row["quantiles"]["durationMsP95"]
        found[row["dimensions"]["datetimeHour"]] = float(value)
    values = [(iso(hour)[11:16], found.get(iso(hour)[:19] + "Z", 0.0)) for hour in hours]
    return bars(values, "events" if figure == "count" else "ms")


def _by_type(tx: Transaction, account_id: str, since: dict[str, str]) -> list[TypeRow]:
    query = GroupQuery(account_id, ("eventType",), 100, since, ("count_DESC",), True)
    return [
        TypeRow(
            row["dimensions"]["eventType"],
            row["count"],
            row["avg"]["durationMs"],
            row["quantiles"]["durationMsP95"],
        )
        for row in groups(tx, query)
    ]


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """A row of a folder. `size` in bytes, of files; `changed`: the last commit that did."""

    name: str
    type: EntryType
    hash: str
    size: int | None
    changed: CommitInfo | None


@dataclass(frozen=True, slots=True)
class ShownFolder:
    """A folder of a ref, folders first. `readme`: its README, with its text."""

    entries: list[ShownEntry]
    refs: list[str]
    latest: CommitInfo
    readme: tuple[Entry, Blob] | None


def shown_folder(content: Content, ref: str, path: str) -> ShownFolder | None:
    """A folder for its page; None for a repository without a commit. Raises: NoSuchContent."""
    try:
        latest = content.log(ref, 1, 0)[0]
    except NoSuchContent:
        if path or ref != "HEAD":
            raise
        return None
    entries = content.tree(content.entry_at(ref, path).hash if path else str(latest.id))
    sizes = content.sizes(entries)
    changes = content.last_changes(ref, path, _LOOK_BACK_S)
    infos = {commit.id: commit_info(commit) for commit in changes.values()}
    rows = [
        ShownEntry(
            *(entry.name, entry.type, entry.hash, sizes.get(entry.hash)),
            infos[changes[entry.name].id] if entry.name in changes else None,
        )
        for entry in entries
    ]
    found = find_readme(entries)
    readme = None if found is None else (found, content.blob(found.hash, README_BYTES))
    folders_first = sorted(rows, key=lambda row: row.type != "tree")
    return ShownFolder(folders_first, ref_names(content), commit_info(latest), readme)


def size_text(size: int) -> str:
    """``812 B``, ``1.5 KiB`` …"""
    number, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:.1f} {units[0]}"


def ref_names(content: Content) -> list[str]:
    """Branches and tags for the menu, at most 200."""
    return [ref.name for ref in content.refs() if ref.name.startswith("refs/")][:_REFS]


def branch_names(content: Content) -> list[str]:
    """Branches for a menu, at most 200, without ``refs/heads/``."""
    names = [ref.name for ref in content.refs()]
    heads = [name.removeprefix("refs/heads/") for name in names if name.startswith("refs/heads/")]
    return heads[:_REFS]


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
