"""What is said of an overlay's files that are damaged, and what to do about them."""

from __future__ import annotations

from artifactfs.damage import DamageReport
from artifactfs.fs.overlay.database import Overlay
from artifactfs.paths import RepoLayout


def report_faults(overlay: Overlay, layout: RepoLayout, damage: DamageReport) -> None:
    """What was found when it was opened."""
    for path in overlay.set_right:
        damage.mended(path, "had a flipped bit", "its checksum told which it was")
    if overlay.has_unreadable_pages:
        report_unreadable_pages(layout, damage)
    for path in overlay.logs_set_aside:
        damage.found(
            path,
            "is a damaged part of the log of changes: some changes of names and attributes"
            " are lost, and what they named is kept",
            f"compare the tree with what you expect; data that no name leads to is in"
            f" {layout.upper} and {layout.small}. When nothing there is wanted: rm {path}",
        )


def report_unreadable_pages(layout: RepoLayout, damage: DamageReport) -> None:
    """Found when it was opened (then there is a copy of how it was), or when it was read."""
    database = layout.overlay_db
    copy = database.with_name(f"{database.name}.damaged")
    damage.found(
        database,
        "has damaged pages: names that were on them cannot be read, and the data that"
        " they led to is kept",
        "restore it from a backup with the mount unmounted, or get out what can be had:"
        f" sqlite3 {copy if copy.exists() else database} .recover",
    )
