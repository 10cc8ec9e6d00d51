"""``artifact-fs rescue``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import json_option

_SHOWN = 10


@click.command()
@click.argument("upper", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--repository",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    metavar="DIR",
    help="STATE/repos/NAME. [default: the one that UPPER is in]",
)
@json_option
@click.pass_context
def rescue(
    context: click.Context, upper: Path, target: Path, repository: Path | None, as_json: bool
) -> None:
    """Bring what was written out of UPPER, the upper folder of kernel writes, to TARGET.

    Without a mount and without a daemon: what differs from the mounted commit, with modes, owners
    and times, is written to the folder TARGET, and names that were removed are listed. A copy of
    UPPER itself would hold NULs in place of files that were only moved or got another mode.

    Ends with 1 where the content of a file is not on this machine; all others are written.

    \b
    Examples:
      artifact-fs rescue /var/lib/artifact-fs/repos/hello/native/upper /tmp/hello
    """
    from artifactfs.daemon.writes.rescue import rescue as bring_out

    found = bring_out(upper, target, repository)
    removed, absent = _texts(found.removed), _texts(found.absent)
    if as_json:
        fields = {"files": found.files, "removed": removed, "absent": absent}
        output.print_json({**fields, "attributes": found.attributes})
    else:
        for path in removed:
            click.echo(f"D {output.printable(path)}")
        click.echo(f"{found.files} files are in {target}, {len(removed)} names were removed")
    for name in found.attributes:
        click.echo(f"warning: an attribute cannot be kept there: {name}", err=True)
    if absent:
        some = ", ".join(absent[:_SHOWN]) + (", …" if absent[_SHOWN:] else "")
        what = f"the content of {len(absent)} files is not here: {output.printable(some)}"
        click.echo(f"error: {what}", err=True)
        click.echo("hint: their names and contents are in git: see git ls-tree there", err=True)
        context.exit(1)


def _texts(paths: list[bytes]) -> list[str]:
    return [os.fsdecode(path) for path in paths]
