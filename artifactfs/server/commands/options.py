"""What several commands have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from artifactfs.errors import InvalidInput, StateError
from artifactfs.server.storage.gitdir import write_git_config
from artifactfs.server.storage.settings import DataLayout

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    envvar="ARTIFACTS_DATA",
    help="Data folder; `serve` and `token create` make it if it is not there.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from artifactfs.server.storage.installation import Installation

    _SizeType = click.ParamType[int]
    _UrlType = click.ParamType[URL]
else:
    _SizeType = _UrlType = click.ParamType  # generic for the type checker only


class DatabaseType(_UrlType):
    """The URL of PostgreSQL; a password in it only where nobody else sees it."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> URL:
        from sqlalchemy.engine import URL

        from artifactfs.server.storage.installation import parse_database

        if isinstance(value, URL):
            return value
        source = ctx.get_parameter_source(param.name) if ctx and param and param.name else None
        return parse_database(str(value), shown=source is not ParameterSource.ENVIRONMENT)


database_option = click.option(
    "--database",
    type=DatabaseType(),
    envvar="ARTIFACTS_DATABASE",
    help="postgresql://… that several servers share, or @FILE that holds the URL.  "
    "[files in the data folder]",
)


def layout_of(data: Path) -> DataLayout:
    """The data folder, prepared. Raises: StateError."""
    layout = DataLayout(data.absolute())
    try:
        layout.prepare()
    except OSError as error:
        raise StateError(f"{data} cannot be used: {error.strerror}") from error
    return layout


def existing(data: Path, database: URL | None) -> Installation:
    """What a server has that was there before. Raises: InvalidInput, StateError."""
    from artifactfs.server.storage.installation import Installation

    layout = DataLayout(data.absolute())
    if not layout.metadata_db.exists() and not layout.database_id.exists():
        raise InvalidInput(f"{data} is not a data folder of artifacts-server")
    layout = layout_of(data)
    write_git_config(layout.git_config)
    return Installation(layout, database)


def show(as_json: bool, found: Mapping[str, Any], text: str) -> None:
    """Print a result for a program or for a person."""
    click.echo(json.dumps(found) if as_json else text)


class Size(_SizeType):
    """Bytes, also as ``512M`` or ``10GiB`` (powers of 1024)."""

    name = "size"
    _FORM = re.compile(r"([0-9]+)\s*([kmgt]?)(i?b)?", re.IGNORECASE)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = self._FORM.fullmatch(str(value).strip())
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is not a size, such as 512M or 10G", param, ctx)
        return int(match[1]) << 10 * " kmgt".index(match[2].lower() or " ")
