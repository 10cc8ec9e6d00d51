"""Commands of an administrator besides ``serve`` and ``token``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from artifactfs.server.commands.options import data_option, existing, json_option, show
from artifactfs.server.metadata.clock import day_of, now_ms
from artifactfs.server.metadata.database import metadata_migrations, open_database
from artifactfs.server.storage.settings import DataLayout

_DAY_MS = 86_400_000


@click.command("usage")
@data_option
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day.  [30 days ago]")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last day.  [today]")
@json_option
def usage_command(data: Path, since: object, until: object, as_json: bool) -> None:
    """Operations and GB-months of each account and namespace."""
    from artifactfs.server.events.analytics import usage
    from artifactfs.server.events.eventlog import event_migrations

    layout = existing(data)
    first = str(since)[:10] if since else day_of(now_ms() - 30 * _DAY_MS)
    last = str(until)[:10] if until else day_of(now_ms())
    db = open_database(layout.events_db, event_migrations, durable=False)
    try:
        accounts = [r["account_id"] for r in db.query("SELECT DISTINCT account_id FROM usage")]
        rows = [(account, row) for account in accounts for row in usage(db, account, first, last)]
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
@click.option("--full", is_flag=True, help="Read every object, not only what connects them.")
@json_option
def fsck_command(data: Path, full: bool, as_json: bool) -> None:
    """Check every repository; exit status 1 if anything is wrong."""
    from artifactfs.server.storage.maintenance import Caretaker

    layout = existing(data)
    db = open_database(layout.metadata_db, metadata_migrations)
    try:
        caretaker = Caretaker(layout, db)
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
@click.option(
    "--grace",
    type=click.IntRange(min=0),
    default=3_600,
    show_default=True,
    help="Seconds that unclaimed pools are kept.",
)
@json_option
def gc_command(data: Path, grace: int, as_json: bool) -> None:
    """Repack repositories and drop what nobody needs. Run it from a timer."""
    from artifactfs.server.storage.maintenance import Caretaker

    layout = existing(data)
    db = open_database(layout.metadata_db, metadata_migrations)
    try:
        for done in Caretaker(layout, db).gc(grace_s=grace):
            show(as_json, done.as_dict(), str(done))
    finally:
        db.close()


@click.command("backup")
@data_option
@click.argument("destination", type=click.Path(path_type=Path, file_okay=False))
@json_option
def backup_command(data: Path, destination: Path, as_json: bool) -> None:
    """Copy the data folder to DESTINATION, consistent while serving.

    Again to the same place, it copies only what is new.
    """
    from artifactfs.server.storage.backup import back_up

    count = back_up(existing(data), DataLayout(destination.absolute()))
    text = f"{count} repositories backed up to {destination}"
    show(as_json, {"repositories": count, "destination": str(destination)}, text)


@click.command("restore")
@data_option
@click.argument("source", type=click.Path(path_type=Path, file_okay=False, exists=True))
@json_option
def restore_command(data: Path, source: Path, as_json: bool) -> None:
    """Make the data folder from the backup in SOURCE."""
    from artifactfs.server.storage.backup import restore

    count = restore(DataLayout(source.absolute()), DataLayout(data.absolute()))
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
    completion_command,
)
