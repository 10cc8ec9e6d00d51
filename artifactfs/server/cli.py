"""``artifacts-server``: serve, and administrate a data folder."""

from __future__ import annotations

import logging
import secrets
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import trio

from artifactfs.errors import ArtifactFSError, InvalidInput, StateError
from artifactfs.redact import redact
from artifactfs.server.admin_commands import COMMANDS
from artifactfs.server.catalog import add_api_token, set_setting, setting
from artifactfs.server.cli_options import data_option, layout_of
from artifactfs.server.clock import iso
from artifactfs.server.database import metadata_migrations, open_database, write_now
from artifactfs.server.records import Permission
from artifactfs.server.settings import Limits, NameRule, ServerSettings

if TYPE_CHECKING:
    from artifactfs.server.context import Context


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Group(click.Group):
    """Turns our errors into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            _fail(StateError(f"{error.name} is not installed", hint=_EXTRA))
        except ArtifactFSError as error:
            _fail(error)


_EXTRA = "the server has requirements of its own: pip install 'artifactfs[server]'"


def _fail(error: ArtifactFSError) -> NoReturn:
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="artifactfs")
def main() -> None:
    """A Git server for agents: thousands of small repositories, forks, short-lived tokens."""


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT or :PORT. Raises: InvalidInput."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise InvalidInput(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


@main.command()
@data_option
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="HOST:PORT.")
@click.option("--public-url", help="Origin in the remotes handed out, e.g. behind a proxy.")
@click.option("--tls-cert", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--tls-key", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--names",
    type=click.Choice([rule.value for rule in NameRule]),
    default=NameRule.DEFAULT.value,
    show_default=True,
    help="Which names repositories and namespaces may have.",
)
@click.option("--access-log", type=click.Path(path_type=Path), help="One JSON line a request.")
@click.option("--log-oids", is_flag=True, help="List the wanted oids in the access log.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning"]))
@click.option("--allow-private-networks", is_flag=True, help="Import from private addresses.")
@click.option("--max-requests", default=2_000, help="Control plane requests in 10 s.")
@click.option("--max-git-requests", default=2_000, help="Git requests in 10 s and namespace.")
@click.option("--max-repo-bytes", default=Limits().repo_bytes, help="Size of a repository.")
@click.option("--max-account-bytes", default=Limits().account_bytes, help="Size of an account.")
@click.option("--max-git-processes", default=Limits().git_processes, help="At the same time.")
@click.option("--max-git-memory", default=Limits().git_memory_bytes, help="Bytes, of each.")
@click.option("--git-time-limit", default=3_600.0, help="Seconds for one Git request.")
@click.option("--client-timeout", default=60.0, help="Seconds that a silent client is waited for.")
def serve(
    data: Path,
    listen: str,
    public_url: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    names: str,
    access_log: Path | None,
    log_oids: bool,
    log_level: str,
    allow_private_networks: bool,
    max_requests: int,
    max_git_requests: int,
    max_repo_bytes: int,
    max_account_bytes: int,
    max_git_processes: int,
    max_git_memory: int,
    git_time_limit: float,
    client_timeout: float,
) -> None:
    """Serve the data folder until SIGTERM.

    \b
    artifacts-server serve --data ./data --listen 127.0.0.1:8080
    """
    from artifactfs.server.connections import listen as open_sockets
    from artifactfs.server.connections import tls_context
    from artifactfs.server.service import locked, run_server

    if (tls_cert is None) != (tls_key is None):
        raise InvalidInput("--tls-cert and --tls-key go together")
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=log_level.upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    host, port = parse_listen(listen)
    layout = layout_of(data)
    settings = ServerSettings(
        layout=layout,
        public_url=public_url,
        names=NameRule(names),
        limits=Limits(
            control_requests=max_requests,
            git_requests=max_git_requests,
            repo_bytes=max_repo_bytes,
            account_bytes=max_account_bytes,
            git_processes=max_git_processes,
            git_memory_bytes=max_git_memory,
            git_time_s=git_time_limit,
            client_idle_s=client_timeout,
        ),
        allow_private_networks=allow_private_networks,
        access_log=access_log,
        log_oids=log_oids,
        secure_cookies=tls_cert is not None,
    )
    with locked(layout):
        try:
            sockets = open_sockets(host, port)
        except OSError as error:
            raise StateError(f"cannot listen on {listen}: {error.strerror or error}") from error
        tls = tls_context(tls_cert, tls_key) if tls_cert and tls_key else None
        scheme = "http" if tls is None else "https"

        def ready(context: Context) -> None:
            for sock in sockets:
                address = sock.getsockname()
                shown = f"[{address[0]}]" if ":" in address[0] else address[0]
                click.echo(f"listening on {scheme}://{shown}:{address[1]}")
            if not context.catalog.has_api_tokens():
                click.echo("no API token yet; make the first one with:")
                click.echo(f"  artifacts-server token create --data {data}")
            sys.stdout.flush()

        trio.run(partial(run_server, settings, sockets, tls=tls, ready=ready))


@main.group()
def token() -> None:
    """API tokens: create, list, revoke."""


@token.command("create")
@data_option
@click.option("--account", help="Account id; default: the one of this data folder.")
@click.option("--permission", type=click.Choice(["edit", "read"]), default="edit")
@click.option("--name", default="", help="What it is for.")
@click.option("--quiet", "-q", is_flag=True, help="Print the token and nothing else.")
def token_create(
    data: Path, account: str | None, permission: Permission, name: str, quiet: bool
) -> None:
    """Make an API token. It is shown once: the server keeps a hash."""
    if account is not None and not _account_ok(account):
        raise InvalidInput("an account id has 1 to 64 characters of a-z, 0-9, '-' and '_'")
    db = open_database(layout_of(data).metadata_db, metadata_migrations)
    try:
        account_id = account or write_now(db, _default_account)
        made, plaintext = write_now(db, lambda d: add_api_token(d, account_id, name, permission))
    finally:
        db.close()
    if quiet:
        click.echo(plaintext)
        return
    click.echo(f"account     {made.account_id}")
    click.echo(f"permission  {made.permission}")
    click.echo(f"id          {made.id}")
    click.echo(f"token       {plaintext}")


def _account_ok(account: str) -> bool:
    return 0 < len(account) <= 64 and all(
        c.isascii() and (c.isalnum() or c in "-_") for c in account
    )


def _default_account(db: object) -> str:
    from sqlite_utils import Database

    assert isinstance(db, Database)
    known = setting(db, "account_id")
    if known is None:
        known = secrets.token_hex(16)
        set_setting(db, "account_id", known)
    return known


@token.command("list")
@data_option
def token_list(data: Path) -> None:
    """List API tokens."""
    db = open_database(layout_of(data).metadata_db, metadata_migrations)
    try:
        for row in db.query("SELECT * FROM api_tokens ORDER BY created_at"):
            state = "active" if row["revoked_at"] is None else "revoked"
            click.echo(
                f"{row['id']}  {state:7}  {row['permission']:4}  {row['account_id']}"
                f"  {iso(row['created_at'])}  {row['name']}"
            )
    finally:
        db.close()


@token.command("revoke")
@data_option
@click.argument("token_id")
def token_revoke(data: Path, token_id: str) -> None:
    """Revoke the API token with this id, at once."""
    from artifactfs.server.clock import now_ms

    db = open_database(layout_of(data).metadata_db, metadata_migrations)
    try:
        changed = write_now(
            db,
            lambda d: (
                d.conn.execute(
                    "UPDATE api_tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                    (now_ms(), token_id),
                ).rowcount
            ),
        )
    finally:
        db.close()
    if not changed:
        raise InvalidInput(f"no active token has the id {token_id}")
    click.echo(f"revoked {token_id}")


for _command in COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    main()
