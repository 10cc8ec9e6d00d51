"""``artifacts-server token``: API tokens."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from artifactfs.errors import InvalidInput
from artifactfs.server.commands.options import (
    data_option,
    database_option,
    existing,
    json_option,
    layout_of,
    show,
)
from artifactfs.server.metadata.clock import iso
from artifactfs.server.metadata.records import Permission
from artifactfs.server.storage.settings import NameRule, name_is_valid

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from artifactfs.server.metadata.database import Transaction


@click.group()
def token() -> None:
    """API tokens: create, list, revoke."""


@token.command("create")
@data_option
@database_option
@click.option("--account", help="Account id; default: the one of this data folder.")
@click.option("--permission", type=click.Choice(["edit", "read"]), default="edit")
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    help="Only for this namespace; may be given again.  [all]",
)
@click.option("--name", default="", help="What it is for.")
@click.option("--quiet", "-q", is_flag=True, help="Print the token and nothing else.")
@click.option(
    "--env",
    "as_variables",
    is_flag=True,
    help="Print it for eval in a shell: $ARTIFACTS_ACCOUNT and $ARTIFACTS_API_TOKEN.",
)
@json_option
def token_create(
    data: Path,
    database: URL | None,
    account: str | None,
    permission: Permission,
    namespaces: tuple[str, ...],
    name: str,
    quiet: bool,
    as_variables: bool,
    as_json: bool,
) -> None:
    """Make an API token. It is shown once: the server keeps a hash."""
    from artifactfs.server.metadata.catalog import add_api_token
    from artifactfs.server.storage.installation import Installation

    for each in namespaces:
        if not name_is_valid(each, NameRule.EXTENDED):
            raise InvalidInput(f"{each!r} cannot be the name of a namespace")
    if account is not None and not _account_ok(account):
        raise InvalidInput("an account id has 1 to 64 characters of a-z, 0-9, '-' and '_'")
    db = Installation(layout_of(data), database).open()
    try:
        account_id = account or db.write(_default_account)
        made, plaintext = db.write(
            lambda tx: add_api_token(tx, account_id, name, permission, namespaces or None)
        )
    finally:
        db.close()
    if quiet:
        click.echo(plaintext)
        return
    if as_variables:
        click.echo(f"export ARTIFACTS_ACCOUNT={made.account_id} ARTIFACTS_API_TOKEN={plaintext}")
        return
    found = {
        "account": made.account_id,
        "permission": made.permission,
        **({"namespaces": list(made.namespaces)} if made.namespaces is not None else {}),
        "id": made.id,
        "token": plaintext,
    }
    shown = {**found, "namespaces": ", ".join(made.namespaces or ())}
    text = "\n".join(f"{key:10}  {shown[key]}" for key in found)
    show(as_json, found, text)


def _account_ok(account: str) -> bool:
    return 0 < len(account) <= 64 and all(
        c.isascii() and (c.isalnum() or c in "-_") for c in account
    )


def _default_account(tx: Transaction) -> str:
    from artifactfs.server.metadata.catalog import set_setting, setting

    known = setting(tx, "account_id")
    if known is None:
        known = secrets.token_hex(16)
        set_setting(tx, "account_id", known)
    return known


@token.command("list")
@data_option
@database_option
@json_option
def token_list(data: Path, database: URL | None, as_json: bool) -> None:
    """List API tokens."""
    db = existing(data, database).open()
    try:
        for row in db.read(lambda tx: tx.rows("SELECT * FROM api_tokens ORDER BY created_at")):
            found = {
                "id": row["id"],
                "state": "active" if row["revoked_at"] is None else "revoked",
                "permission": row["permission"],
                "account": row["account_id"],
                "created_at": iso(row["created_at"]),
                "name": row["name"],
                "namespaces": None if row["namespaces"] is None else json.loads(row["namespaces"]),
            }
            only = f"  ({', '.join(found['namespaces'])})" if found["namespaces"] else ""
            text = "{id}  {state:7}  {permission:4}  {account}  {created_at}  {name}"
            show(as_json, found, text.format(**found) + only)
    finally:
        db.close()


@token.command("revoke")
@data_option
@database_option
@click.argument("token_id")
@json_option
def token_revoke(data: Path, database: URL | None, token_id: str, as_json: bool) -> None:
    """Revoke the API token with this id, at once."""
    from artifactfs.server.metadata.clock import now_ms

    db = existing(data, database).open()
    try:
        changed = db.write(
            lambda tx: tx.run(
                "UPDATE api_tokens SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL",
                {"now": now_ms(), "id": token_id},
            )
        )
    finally:
        db.close()
    if not changed:
        raise InvalidInput(f"no active token has the id {token_id}")
    show(as_json, {"revoked": token_id}, f"revoked {token_id}")
