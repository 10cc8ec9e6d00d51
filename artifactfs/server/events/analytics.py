"""The analytics dataset as SQL: dimensions, filters, aggregates, quantiles."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from artifactfs.server.events.events import ACTIONS, ERRORS
from artifactfs.server.metadata.clock import iso, parse_iso
from artifactfs.server.metadata.database import Engines, Transaction

MINUTE = 60_000

_STEPS = {
    "datetime": 1_000,
    "datetimeMinute": MINUTE,
    "datetimeFiveMinutes": 5 * MINUTE,
    "datetimeFifteenMinutes": 15 * MINUTE,
    "datetimeHour": 60 * MINUTE,
    "datetimeSixHours": 360 * MINUTE,
    "date": 1_440 * MINUTE,
}
_TEXT = {
    "repository": "CASE repository WHEN '' THEN '' ELSE namespace || '/' || repository END",
    "repositoryNamespace": "namespace",
    "repositoryName": "repository",
    "eventKind": "kind",
    "eventType": "type",
    "errorMessage": "error_message",
}
DIMENSIONS: tuple[str, ...] = (*_TEXT, *_STEPS)
OPERATORS: Mapping[str, str] = {
    "": "=",
    "_neq": "<>",
    "_gt": ">",
    "_lt": "<",
    "_geq": ">=",
    "_leq": "<=",
    "_in": "IN",
}
QUANTILES: Mapping[str, float] = {
    "durationMsP25": 0.25,
    "durationMsP50": 0.5,
    "durationMsP75": 0.75,
    "durationMsP90": 0.9,
    "durationMsP95": 0.95,
    "durationMsP99": 0.99,
    "durationMsP999": 0.999,
}
ORDERS: Mapping[str, str] = {
    "count": "total",
    "sum_durationMs": "sum_ms",
    "avg_durationMs": "avg_ms",
}
MAX_ROWS = 10_000
EVENT_TYPES = (*ACTIONS, *ERRORS)


class BadQuery(ValueError):
    """The query cannot be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class GroupQuery:
    """One ``artifactsEventsAdaptiveGroups``."""

    account_id: str
    dimensions: tuple[str, ...]
    limit: int
    filter: Mapping[str, Any]
    order_by: Sequence[str]
    quantiles: bool


def is_time(dimension: str) -> bool:
    return dimension in _STEPS


def groups(tx: Transaction, query: GroupQuery) -> list[dict[str, Any]]:
    """The rows of a group query, shaped as GraphQL shows them. Raises: BadQuery."""
    if not 1 <= query.limit <= MAX_ROWS:
        raise BadQuery(f"limit must be between 1 and {MAX_ROWS}")
    if tx.engine == "sqlite":
        _install_quantiles(tx.raw)
    params: dict[str, Any] = {"account": query.account_id}
    where = _where(query.filter, params, depth=0)
    columns = [f'{_sql(dimension)} AS "{dimension}"' for dimension in query.dimensions]
    columns += ["count(*) AS total", "sum(duration_ms) AS sum_ms", "avg(duration_ms) AS avg_ms"]
    if query.quantiles:
        columns.append(f"{_QUANTILES[tx.engine]} AS quantiles")
    places = ", ".join(str(number + 1) for number in range(len(query.dimensions)))
    group = f" GROUP BY {places}" if places else ""
    sql = (
        f"SELECT {', '.join(columns)} FROM events WHERE account_id = :account AND {where}{group}"
        f"{_order(query)} LIMIT {query.limit}"
    )
    return [_shape(row, query) for row in tx.rows(sql, params) if row["total"]]


def _sql(dimension: str) -> str:
    if dimension in _TEXT:
        return _TEXT[dimension]
    step = _STEPS[dimension]
    return f"(at / {step} * {step})"


def _where(conditions: Mapping[str, Any], params: dict[str, Any], *, depth: int) -> str:
    if depth > 5:
        raise BadQuery("the filter is nested too deep")
    parts = ["1 = 1"]
    for key, value in conditions.items():
        if value is None:
            continue
        if key in ("AND", "OR"):
            inner = [_where(each, params, depth=depth + 1) for each in value]
            parts.append("(" + f" {key} ".join(inner or ["1 = 1"]) + ")")
            continue
        dimension, operator = _split(key)
        if operator == "IN":
            bound = [_bound(dimension, each) for each in value]
            names = ", ".join(_add(params, each) for each in bound)
            parts.append(f"{_sql(dimension)} IN ({names or 'NULL'})")
        else:
            name = _add(params, _bound(dimension, value))
            parts.append(f"{_sql(dimension)} {operator} {name}")
    return "(" + " AND ".join(parts) + ")"


def _add(params: dict[str, Any], value: Any) -> str:
    """Its name in the statement."""
    name = f"value{len(params)}"
    params[name] = value
    return f":{name}"


def _split(key: str) -> tuple[str, str]:
    dimension, underscore, suffix = key.partition("_")
    operator = OPERATORS.get(underscore + suffix)
    if dimension not in DIMENSIONS or operator is None:
        raise BadQuery(f"unknown filter {key}")
    return dimension, operator


def _bound(dimension: str, value: Any) -> Any:
    if not is_time(dimension):
        return str(value)
    try:
        return parse_iso(str(value))
    except (ValueError, OverflowError):
        raise BadQuery(f"{value!r} is not a time") from None


def _order(query: GroupQuery) -> str:
    terms = []
    for order in query.order_by:
        name, _, direction = order.rpartition("_")
        if name not in ORDERS and name not in query.dimensions:
            raise BadQuery(f"orderBy {order} needs {name} among the dimensions")
        terms.append(f"{ORDERS.get(name, chr(34) + name + chr(34))} {direction}")
    return f" ORDER BY {', '.join(terms)}" if terms else ""


def _shape(row: Mapping[str, Any], query: GroupQuery) -> dict[str, Any]:
    return {
        "count": row["total"],
        "sum": {"durationMs": row["sum_ms"]},
        "avg": {"durationMs": row["avg_ms"]},
        "quantiles": _quantiles_of(row["quantiles"]) if query.quantiles else None,
        "dimensions": {name: _shown(name, row[name]) for name in query.dimensions},
    }


def _shown(dimension: str, value: Any) -> Any:
    if dimension == "date":
        return iso(value)[:10]
    return iso(value)[:19] + "Z" if is_time(dimension) else value


def _quantiles_of(found: str | list[float]) -> dict[str, float]:
    if isinstance(found, str):
        return dict(json.loads(found))
    return dict(zip(QUANTILES, found, strict=True))


_QUANTILES: Mapping[Engines, str] = {
    "sqlite": "quantiles(duration_ms)",
    "postgresql": f"percentile_cont(ARRAY[{', '.join(map(str, QUANTILES.values()))}])"
    " WITHIN GROUP (ORDER BY duration_ms)",
}


class _Quantiles:
    """SQL aggregate: all quantiles of a column at once, as JSON; linear interpolation."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def step(self, value: float | None) -> None:
        if value is not None:
            self._values.append(value)

    def finalize(self) -> str:
        ordered = sorted(self._values)
        return json.dumps({name: _quantile(ordered, q) for name, q in QUANTILES.items()})


def _quantile(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0.0
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _install_quantiles(connection: sqlite3.Connection) -> None:
    connection.create_aggregate("quantiles", 1, _Quantiles)  # type: ignore[arg-type]


UsageBy = Literal["account", "namespace"]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Usage of one namespace, or of the account where `namespace` is None."""

    namespace: str | None
    operations: int
    gb_months: float


def usage(tx: Transaction, account_id: str, since: str, until: str) -> list[UsageRow]:
    """Operations and GB-months (daily peaks in GB, over 30) from day to day, both included.

    The first row is the account's total.
    """
    rows = tx.rows(
        "SELECT namespace, sum(operations) AS operations, sum(peak_bytes) AS peaks FROM usage"
        " WHERE account_id = :account AND day BETWEEN :since AND :until"
        " GROUP BY namespace ORDER BY namespace",
        {"account": account_id, "since": since, "until": until},
    )
    found = [
        UsageRow(row["namespace"], int(row["operations"]), int(row["peaks"]) / 1e9 / 30)
        for row in rows
    ]
    total = UsageRow(
        None, sum(row.operations for row in found), sum(row.gb_months for row in found)
    )
    return [total, *found]
