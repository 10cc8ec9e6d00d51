"""A data folder and the database that belongs to it: the files within, or PostgreSQL.

A folder whose database is elsewhere says so in the file ``database-id``, and the database has the
same id: with another one every repository would look like something that a crash left behind.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from artifactfs.errors import InvalidInput, StateError
from artifactfs.server.metadata.catalog import set_setting, setting
from artifactfs.server.metadata.copying import EVENT_TABLES, METADATA_TABLES, copy_rows
from artifactfs.server.metadata.database import Database, Store, Transaction
from artifactfs.server.metadata.migrations import event_migrations, metadata_migrations
from artifactfs.server.metadata.sqlite import SQLite, open_store
from artifactfs.server.storage.settings import DataLayout

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_ID = "data_id"
_SCHEMES = ("postgresql", "postgres")


def parse_database(text: str, *, shown: bool) -> URL:
    """``postgresql://…``, or ``@FILE`` that holds it. `shown`: everybody can see it, in `ps`.

    Raises: InvalidInput.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    named = text
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{named[1:]} cannot be read: {error}") from None
    try:
        url = make_url(text)
    except ArgumentError:
        url = None
    if url is None or url.drivername not in _SCHEMES:
        raise InvalidInput("the database is not a URL such as postgresql://user@host/name")
    if shown and url.password and not named.startswith("@"):
        raise InvalidInput(
            "a password on the command line can be seen by everybody on this machine",
            hint="put the URL into a file and give --database @FILE, or into ARTIFACTS_DATABASE",
        )
    return url


@dataclass(frozen=True, slots=True)
class Installation:
    """Where everything of a server is. `url` None: the database is in the folder."""

    layout: DataLayout
    url: URL | None = None

    @property
    def exists(self) -> bool:
        """Whether a server was there before."""
        return self.url is not None or self.layout.metadata_db.exists()

    def open(self, *, migrate: bool = False) -> Database:
        """The metadata database. Raises: StateError."""
        if self.url is None:
            self._refuse_foreign()
            self._refuse_lost()
            return SQLite(self.layout.metadata_db, metadata_migrations)
        from artifactfs.server.metadata.postgres import Postgres  # which takes 0.1 s to load

        database = Postgres(self.url, metadata_migrations, event_migrations, migrate=migrate)
        try:
            self._belong(database)
        except BaseException:
            database.close()
            raise
        return database

    def open_events(self) -> Database:
        """Events and usage. Raises: StateError."""
        if self.url is None:
            return SQLite(self.layout.events_db, event_migrations, durable=False)
        return self.open()

    def stores(self) -> tuple[Store, Store]:
        """Metadata, and events. Raises: StateError."""
        if self.url is not None:
            store = Store(*2 * (self.open(),))
            return store, store
        self._refuse_foreign()
        self._refuse_lost()
        return (
            open_store(self.layout.metadata_db, metadata_migrations),
            open_store(self.layout.events_db, event_migrations, durable=False),
        )

    def _refuse_foreign(self) -> None:
        if self.layout.database_id.exists():
            raise StateError(
                f"{self.layout.root} belongs to a PostgreSQL database",
                hint="name it: --database postgresql://user@host/name",
            )

    def _refuse_lost(self) -> None:
        """A new database in place of one that was lost would know none of the repositories, and
        they would go as what a crash has left."""
        path = self.layout.metadata_db
        files = (path, path.with_name(f"{path.name}-wal"))
        if any(file.exists() and file.stat().st_size for file in files):
            return
        if next(self.layout.repos.glob("*/*.git"), None) is not None:
            raise StateError(
                f"{path} is {'empty' if path.exists() else 'missing'}, and there are repositories"
                f" in {self.layout.repos}",
                hint="restore the data folder from a backup; or move that folder away, to begin"
                " without them",
            )

    def _belong(self, database: Database) -> None:
        """Check that folder and database belong together; new ones do from now on."""
        path = self.layout.database_id
        here = path.read_text().strip() if path.exists() else None
        there = database.read(lambda tx: setting(tx, _ID))
        if here is None and there is None:
            self._begin(database)
        elif here != there:
            raise StateError(
                f"{self.layout.root} and this database do not belong together",
                hint="check --data and --database, and that the shared file system is mounted",
            )

    def _begin(self, database: Database) -> None:
        if self.layout.metadata_db.exists():
            raise StateError(
                f"{self.layout.root} has a database in a file",
                hint="artifacts-server move --to URL brings it to PostgreSQL",
            )
        if next(self.layout.repos.glob("*/*.git"), None) is not None:
            raise StateError(f"{self.layout.root} has repositories of another database")
        adopt(self.layout, database)


def adopt(layout: DataLayout, database: Database) -> None:
    """Make a folder and a database belong together. Raises: StateError if one has another."""

    def first(tx: Transaction, mine: str) -> str:
        known = setting(tx, _ID)
        if known is None:
            set_setting(tx, _ID, mine)
        return known or mine

    settled = database.write(partial(first, mine=secrets.token_hex(16)))
    try:
        fd = os.open(layout.database_id, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if layout.database_id.read_text().strip() not in ("", settled):
            raise StateError(f"{layout.root} belongs to another database") from None
        return
    with os.fdopen(fd, "w") as file:
        file.write(settled + "\n")
        file.flush()
        os.fsync(file.fileno())


def move(layout: DataLayout, target: URL) -> int:
    """All rows to PostgreSQL in one transaction; how many. Raises: StateError."""
    from artifactfs.server.metadata.postgres import Postgres

    here = Installation(layout)
    source, events = here.open(), here.open_events()
    there = Postgres(target, metadata_migrations, event_migrations, migrate=True)

    def fill(tx: Transaction) -> int:
        for table in ("settings", "api_tokens", "namespaces"):
            if tx.row(f"SELECT 1 AS one FROM {table} LIMIT 1") is not None:
                shown = target.render_as_string(hide_password=True)
                raise StateError(f"{shown} is not empty")
        moved = source.snapshot(lambda old: copy_rows(old, tx, METADATA_TABLES))
        return moved + events.snapshot(lambda old: copy_rows(old, tx, EVENT_TABLES))

    try:
        moved = there.write(fill)
        adopt(layout, there)
    finally:
        for database in (source, events, there):
            database.close()
    for path in (layout.metadata_db, layout.events_db):
        path.rename(path.with_name(f"{path.name}.moved"))
    return moved
