"""``artifacts-server migrate`` and ``move``: the database of several servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from artifactfs.errors import InvalidInput
from artifactfs.server.commands.options import (
    DatabaseType,
    data_option,
    database_option,
    existing,
    json_option,
    layout_of,
    show,
)
from artifactfs.server.storage.open_marks import locked

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


@click.command("migrate")
@data_option
@database_option
@json_option
def migrate_command(data: Path, database: URL | None, as_json: bool) -> None:
    """Make the tables that this version needs, before its first server starts.

    Servers of the version before work on meanwhile. A database in the data folder needs no
    command: `serve` does it.
    """
    from artifactfs.server.storage.installation import Installation

    if database is None:
        raise InvalidInput(
            "name the database: --database postgresql://user@host/name",
            hint="a database in the data folder is brought up to date by `serve`",
        )
    db = Installation(layout_of(data), database).open(migrate=True)
    db.close()
    shown = database.render_as_string(hide_password=True)
    show(as_json, {"database": shown}, f"{shown} is up to date")


@click.command("move")
@data_option
@click.option(
    "--to",
    "target",
    type=DatabaseType(),
    required=True,
    help="postgresql://… of an empty database, or @FILE that holds the URL.",
)
@json_option
def move_command(data: Path, target: URL, as_json: bool) -> None:
    """Bring the database of a data folder to PostgreSQL. No server may run on the folder.

    The files stay as metadata.db.moved and events.db.moved: to go back, as long as nothing was
    done in PostgreSQL, take the suffix and the file database-id away.
    """
    from artifactfs.server.storage.installation import move

    here = existing(data, None)
    if not here.layout.metadata_db.exists():
        raise InvalidInput(f"the database of {data} is not in the folder")
    with locked(here.layout):
        rows = move(here.layout, target)
    shown = target.render_as_string(hide_password=True)
    show(as_json, {"rows": rows, "database": shown}, f"{rows} rows moved to {shown}")
