"""Shows what an examination found: plain lines for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator

from artifactfs.doctor.examination import Report
from artifactfs.doctor.finding import Finding, Severity

STYLES = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "red",
}
_WIDTH = max(len(severity) for severity in Severity)


def to_json(report: Report) -> str:
    """One object: ``findings`` (see `Finding.to_mapping`), ``problems``, ``warnings``, and
    ``features`` (see `Features.as_json`; null where they cannot be known)."""
    return json.dumps(
        {
            "findings": [finding.to_mapping() for finding in report.findings],
            "problems": report.problems,
            "warnings": report.warnings,
            "features": None if report.features is None else report.features.as_json(),
        },
        indent=2,
    )


def lines(report: Report, *, everything: bool) -> Iterator[tuple[str, Severity | None]]:
    """The report's lines with the severity that colours each, problems first.

    What is in order is shown only with `everything`.
    """
    order = [Severity.PROBLEM, Severity.WARNING, Severity.NOTE, Severity.OK]
    shown = [f for f in report.findings if everything or f.severity is not Severity.OK]
    for finding in sorted(shown, key=lambda found: order.index(found.severity)):
        yield from _finding_lines(finding)
    fine = sum(finding.severity is Severity.OK for finding in report.findings)
    yield (
        f"{report.problems} problem{_s(report.problems)}, {report.warnings} "
        f"warning{_s(report.warnings)}, {fine} check{_s(fine)} in order",
        None,
    )


def _finding_lines(finding: Finding) -> Iterator[tuple[str, Severity | None]]:
    yield f"{finding.severity:<{_WIDTH}}  {finding.code}: {finding.what}", finding.severity
    if finding.mend is not None:
        yield f"{'':<{_WIDTH}}  mend: {finding.mend}", None


def _s(count: int) -> str:
    return "" if count == 1 else "s"
