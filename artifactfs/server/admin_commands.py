"""Commands of an administrator besides ``serve`` and ``token``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from artifactfs.errors import InvalidInput
from artifactfs.server.cli_options import data_option, layout_of
from artifactfs.server.clock import day_of, now_ms
from artifactfs.server.database import metadata_migrations, open_database
from artifactfs.server.gitdir import write_git_config
from artifactfs.server.settings import DataLayout

_DAY_MS = 86_400_000


def _existing(data: Path) -> DataLayout:
    layout = DataLayout(data.absolute())
    if not layout.metadata_db.exists():
        raise InvalidInput(f"{data} is not a data folder of artifacts-server")
    layout.prepare()
    write_git_config(layout.git_config)
    return layout


@click.command("usage")
@data_option
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day.  [30 days ago]")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last day.  [today]")
@click.option("--json", "as_json", is_flag=True)
def usage_command(data: Path, since: object, until: object, as_json: bool) -> None:
    """Operations and GB-months of each account and namespace."""
    from artifactfs.server.analytics import usage
    from artifactfs.server.eventlog import event_migrations

    layout = _existing(data)
    first = str(since)[:10] if since else day_of(now_ms() - 30 * _DAY_MS)
    last = str(until)[:10] if until else day_of(now_ms())
    db = open_database(layout.events_db, event_migrations, durable=False)
    try:
        accounts = [r["account_id"] for r in db.query("SELECT DISTINCT account_id FROM usage")]
        rows = [(account, row) for account in accounts for row in usage(db, account, first, last)]
    finally:
        db.close()
    for account, row in rows:
        if as_json:
            found = {
                "account": account,
                "namespace": row.namespace,
                "operations": row.operations,
                "storage_gb_months": row.gb_months,
            }
            click.echo(json.dumps(found))
        else:
            name = row.namespace or "(total)"
            click.echo(
                f"{account}  {name:40}  {row.operations:>10}  {row.gb_months:>12.6f} GB-months"
            )


@click.command("fsck")
@data_option
@click.option("--full", is_flag=True, help="Read every object, not only what connects them.")
def fsck_command(data: Path, full: bool) -> None:
    """Check every repository; exit status 1 if anything is wrong."""
    from artifactfs.server.maintenance import Caretaker

    layout = _existing(data)
    db = open_database(layout.metadata_db, metadata_migrations)
    try:
        caretaker = Caretaker(layout, db)
        findings = list(caretaker.fsck(full=full))
        checked = len(caretaker.repos())
    finally:
        db.close()
    for finding in findings:
        click.echo(f"{finding.what}: {finding.problem}", err=True)
    click.echo(f"{checked} repositories checked, {len(findings)} problems")
    if findings:
        sys.exit(1)


@click.command("gc")
@data_option
@click.option(
    "--grace", default=3_600, show_default=True, help="Seconds that unclaimed pools are kept."
)
def gc_command(data: Path, grace: int) -> None:
    """Repack repositories and drop what nobody needs. Run it from a timer."""
    from artifactfs.server.maintenance import Caretaker

    layout = _existing(data)
    db = open_database(layout.metadata_db, metadata_migrations)
    try:
        for line in Caretaker(layout, db).gc(grace_s=grace):
            click.echo(line)
    finally:
        db.close()


@click.command("backup")
@data_option
@click.argument("destination", type=click.Path(path_type=Path, file_okay=False))
def backup_command(data: Path, destination: Path) -> None:
    """Copy the data folder to DESTINATION, consistent while serving.

    Again to the same place, it copies only what is new.
    """
    from artifactfs.server.backup import back_up

    count = back_up(_existing(data), DataLayout(destination.absolute()))
    click.echo(f"{count} repositories backed up to {destination}")


@click.command("restore")
@data_option
@click.argument("source", type=click.Path(path_type=Path, file_okay=False, exists=True))
def restore_command(data: Path, source: Path) -> None:
    """Make the data folder from the backup in SOURCE."""
    from artifactfs.server.backup import restore

    count = restore(DataLayout(source.absolute()), layout_of(data))
    click.echo(f"{count} repositories restored to {data}")


COMMANDS = (usage_command, fsck_command, gc_command, backup_command, restore_command)
