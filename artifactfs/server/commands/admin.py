"""Commands of an administrator besides ``serve`` and ``token``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from artifactfs.errors import InvalidInput
from artifactfs.server.commands.moving import migrate_command, move_command
from artifactfs.server.commands.options import (
    data_option,
    database_option,
    existing,
    json_option,
    show,
)
from artifactfs.server.metadata.clock import day_of, now_ms
from artifactfs.server.storage.settings import DataLayout

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_DAY_MS = 86_400_000


@click.command("usage")
@data_option
@database_option
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day.  [30 days ago]")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last day.  [today]")
@json_option
def usage_command(
    data: Path, database: URL | None, since: object, until: object, as_json: bool
) -> None:
    """Operations and GB-months of each account and namespace."""
    from artifactfs.server.events.analytics import usage

    here = existing(data, database)
    first = str(since)[:10] if since else day_of(now_ms() - 30 * _DAY_MS)
    last = str(until)[:10] if until else day_of(now_ms())
    db = here.open_events()
    try:
        accounts = db.read(lambda tx: tx.rows("SELECT DISTINCT account_id FROM usage"))
        names = sorted(row["account_id"] for row in accounts)
        rows = [
            (name, row)
            for name in names
            for row in db.read(partial(usage, account_id=name, since=first, until=last))
        ]
    finally:
        db.close()
    for account, row in rows:
        found = {
            "account": account,
            "namespace": row.namespace,
            "operations": row.operations,
            "storage_gb_months": row.gb_months,
        }
        name = row.namespace or "(total)"
        text = f"{account}  {name:40}  {row.operations:>10}  {row.gb_months:>12.6f} GB-months"
        show(as_json, found, text)


@click.command("fsck")
@data_option
@database_option
@click.option("--full", is_flag=True, help="Read every object, not only what connects them.")
@json_option
def fsck_command(data: Path, database: URL | None, full: bool, as_json: bool) -> None:
    """Check every repository; exit status 1 if anything is wrong."""
    from artifactfs.server.storage.maintenance import Caretaker

    here = existing(data, database)
    db = here.open()
    try:
        caretaker = Caretaker(here.layout, db)
        findings = list(caretaker.fsck(full=full))
        checked = len(caretaker.repos())
    finally:
        db.close()
    for finding in findings:
        if not as_json:
            click.echo(f"{finding.what}: {finding.problem}", err=True)
    problems = [{"what": each.what, "problem": each.problem} for each in findings]
    text = f"{checked} repositories checked, {len(findings)} problems"
    show(as_json, {"checked": checked, "problems": problems}, text)
    if findings:
        sys.exit(1)


@click.command("gc")
@data_option
@database_option
@click.option(
    "--grace",
    type=click.IntRange(min=0),
    default=3_600,
    show_default=True,
    help="Seconds that unclaimed pools are kept.",
)
@json_option
def gc_command(data: Path, database: URL | None, grace: int, as_json: bool) -> None:
    """Repack repositories and drop what nobody needs. Run it from a timer."""
    from artifactfs.server.cluster.membership import only_command
    from artifactfs.server.storage.maintenance import Caretaker

    here = existing(data, database)
    db = here.open()
    try:
        with only_command(here.layout, database, "gc") as marks:
            for done in Caretaker(here.layout, db, marks).gc(grace_s=grace):
                show(as_json, done.as_dict(), str(done))
    finally:
        db.close()


@click.command("backup")
@data_option
@database_option
@click.argument("destination", type=click.Path(path_type=Path, file_okay=False))
@json_option
def backup_command(data: Path, database: URL | None, destination: Path, as_json: bool) -> None:
    """Copy the data folder to DESTINATION, consistent while serving.

    Again to the same place, it copies only what is new.
    """
    from artifactfs.server.storage.backup import back_up

    here = existing(data, database)
    db = None if database is None else here.open()
    try:
        count = back_up(here.layout, DataLayout(destination.absolute()), db)
    finally:
        if db is not None:
            db.close()
    text = f"{count} repositories backed up to {destination}"
    show(as_json, {"repositories": count, "destination": str(destination)}, text)


@click.command("restore")
@data_option
@database_option
@click.argument("source", type=click.Path(path_type=Path, file_okay=False, exists=True))
@json_option
def restore_command(data: Path, database: URL | None, source: Path, as_json: bool) -> None:
    """Make the data folder from the backup in SOURCE, and with --database fill that, too."""
    from artifactfs.server.storage.backup import restore
    from artifactfs.server.storage.installation import move

    layout = DataLayout(data.absolute())
    if layout.database_id.exists():
        raise InvalidInput(f"{data} is in use already", hint="restore to a folder that is empty")
    count = restore(DataLayout(source.absolute()), layout)
    if database is not None:
        move(layout, database)
    text = f"{count} repositories restored to {data}"
    show(as_json, {"repositories": count, "data": str(data)}, text)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that makes SHELL complete artifacts-server.

    \b
    Example:
      artifacts-server completion bash > /etc/bash_completion.d/artifacts-server
    """
    from click.shell_completion import get_completion_class

    program = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(program, {}, "artifacts-server", "_ARTIFACTS_SERVER_COMPLETE").source())


COMMANDS = (
    usage_command,
    fsck_command,
    gc_command,
    backup_command,
    restore_command,
    migrate_command,
    move_command,
    completion_command,
)
