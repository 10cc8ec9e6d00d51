"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

from artifactfs.errors import StateError
from artifactfs.server.settings import DataLayout

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    envvar="ARTIFACTS_DATA",
    help="Data folder; made if it is not there.",
)


def layout_of(data: Path) -> DataLayout:
    """The data folder, prepared. Raises: StateError."""
    layout = DataLayout(data.absolute())
    try:
        layout.prepare()
    except OSError as error:
        raise StateError(f"{data} cannot be used: {error.strerror}") from error
    return layout
