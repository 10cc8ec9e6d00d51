"""The GraphQL endpoint: the analytics dataset, executed by graphql-core."""

from __future__ import annotations

from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLIncludeDirective,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    GraphQLSkipDirective,
    InlineFragmentNode,
    SelectionSetNode,
    Visitor,
    build_schema,
    execute_sync,
    parse,
    validate,
    visit,
)
from graphql.execution.values import get_directive_values

from artifactfs.server.events.analytics import (
    DIMENSIONS,
    OPERATORS,
    ORDERS,
    QUANTILES,
    BadQuery,
    GroupQuery,
    groups,
    is_time,
)
from artifactfs.server.metadata.database import Transaction

Info = GraphQLResolveInfo[Any]

_MAX_TOKENS = 2_000
_MAX_GROUPS = 20
_GROUPS = "artifactsEventsAdaptiveGroups"


def _scalar(dimension: str) -> str:
    if dimension == "date":
        return "Date"
    return "Time" if is_time(dimension) else "string"


def _sdl() -> str:
    filters = "\n".join(
        f"  {name}{suffix}: {f'[{_scalar(name)}!]' if suffix == '_in' else _scalar(name)}"
        for name in DIMENSIONS
        for suffix in OPERATORS
    )
    orders = "\n".join(
        f"  {name}_{way}" for name in (*ORDERS, *DIMENSIONS) for way in ("ASC", "DESC")
    )
    dimensions = "\n".join(f"  {name}: {_scalar(name)}!" for name in DIMENSIONS)
    quantiles = "\n".join(f"  {name}: float64!" for name in QUANTILES)
    prefix = "AccountArtifactsEventsAdaptiveGroups"
    return f"""
scalar string
scalar uint64
scalar float64
scalar Time
scalar Date

type Query {{ viewer: viewer! }}
type viewer {{ accounts(filter: AccountFilter_InputObject, limit: uint64): [account!]! }}
input AccountFilter_InputObject {{ accountTag: string }}
type account {{
  accountTag: string!
  {_GROUPS}(
    limit: uint64 = 100
    filter: {prefix}Filter_InputObject
    orderBy: [{prefix}OrderBy!]
  ): [{prefix}!]!
}}
type {prefix} {{
  count: uint64!
  sum: {prefix}Sum!
  avg: {prefix}Avg!
  quantiles: {prefix}Quantiles
  dimensions: {prefix}Dimensions
}}
type {prefix}Sum {{ durationMs: float64! }}
type {prefix}Avg {{ durationMs: float64! }}
type {prefix}Quantiles {{
{quantiles}
}}
type {prefix}Dimensions {{
{dimensions}
}}
input {prefix}Filter_InputObject {{
{filters}
  AND: [{prefix}Filter_InputObject!]
  OR: [{prefix}Filter_InputObject!]
}}
enum {prefix}OrderBy {{
{orders}
}}
"""


def _resolve_accounts(viewer: dict[str, Any], info: Info, **arguments: Any) -> list[dict[str, str]]:
    own = str(info.context["account_id"])
    wanted = (arguments.get("filter") or {}).get("accountTag", own)
    if wanted != own:
        raise GraphQLError("not authorized for that account")
    return [{"accountTag": own}]


def _resolve_groups(account: dict[str, str], info: Info, **arguments: Any) -> list[dict[str, Any]]:
    limit = arguments.get("limit", 100)
    chosen = _selected(info)
    query = GroupQuery(
        account["accountTag"],
        tuple(name for name in DIMENSIONS if name in chosen.get("dimensions", ())),
        limit if isinstance(limit, int) and not isinstance(limit, bool) else 0,
        arguments.get("filter") or {},
        arguments.get("orderBy") or (),
        "quantiles" in chosen,
    )
    try:
        return groups(info.context["tx"], query)
    except BadQuery as error:
        raise GraphQLError(str(error)) from None


def _selected(info: Info) -> dict[str, set[str]]:
    """The fields selected below a group, each with the fields below that."""
    chosen: dict[str, set[str]] = {}
    for node in info.field_nodes:
        for field in _fields(node.selection_set, info):
            below = chosen.setdefault(field.name.value, set())
            below.update(inner.name.value for inner in _fields(field.selection_set, info))
    return chosen


def _fields(selection: SelectionSetNode | None, info: Info) -> list[FieldNode]:
    found: list[FieldNode] = []
    for node in selection.selections if selection else ():
        skip = get_directive_values(GraphQLSkipDirective, node, info.variable_values)
        include = get_directive_values(GraphQLIncludeDirective, node, info.variable_values)
        if (skip and skip["if"]) or (include and not include["if"]):
            continue
        if isinstance(node, FieldNode):
            found.append(node)
        elif isinstance(node, InlineFragmentNode):
            found.extend(_fields(node.selection_set, info))
        elif isinstance(node, FragmentSpreadNode):
            fragment = info.fragments[node.name.value]
            found.extend(_fields(fragment.selection_set, info))
    return found


def _build() -> GraphQLSchema:
    schema = build_schema(_sdl())
    for type_name, field, resolve in (
        ("Query", "viewer", lambda *_: {}),
        ("viewer", "accounts", _resolve_accounts),
        ("account", _GROUPS, _resolve_groups),
    ):
        found = schema.type_map[type_name]
        assert isinstance(found, GraphQLObjectType)
        found.fields[field].resolve = resolve
    return schema


SCHEMA = _build()


class _Counter(Visitor):
    """How often the dataset is asked for: each costs a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def enter_field(self, node: FieldNode, *_: Any) -> None:
        self.count += node.name.value == _GROUPS


def run_query(
    tx: Transaction,
    account_id: str,
    source: str,
    variables: dict[str, Any] | None,
    operation_name: str | None,
) -> dict[str, Any]:
    """Execute a query (synchronously: call it in a thread); the body of the answer."""
    try:
        document = parse(source, max_tokens=_MAX_TOKENS)
    except GraphQLError as error:
        return _answer(ExecutionResult(None, [error]))
    errors = validate(SCHEMA, document) or _too_much(document)
    if errors:
        return _answer(ExecutionResult(None, errors))
    result = execute_sync(
        SCHEMA,
        document,
        context_value={"account_id": account_id, "tx": tx},
        variable_values=variables,
        operation_name=operation_name,
    )
    return _answer(result)


def _too_much(document: DocumentNode) -> list[GraphQLError]:
    counter = _Counter()
    visit(document, counter)
    if counter.count > _MAX_GROUPS:
        return [GraphQLError(f"at most {_MAX_GROUPS} datasets in one query")]
    return []


def _answer(result: ExecutionResult) -> dict[str, Any]:
    errors = [error.formatted for error in result.errors] if result.errors else None
    return {"data": result.data, "errors": errors}
