"""``artifact-fs doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.configuration import configuration_file
from artifactfs.cli.terminal.context import connect, json_option, state
from artifactfs.cli.terminal.known import registered
from artifactfs.cli.terminal.names import optional_name_option
from artifactfs.errors import ArtifactFSError


@click.command()
@optional_name_option
@click.option("--verbose", "-v", is_flag=True, help="Show what is in order as well.")
@click.option("--offline", is_flag=True, help="Do not ask the remotes.")
@click.option("--deep", is_flag=True, help="Read databases and packs as a whole (slow).")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a mount, the daemon or a remote.",
)
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a zip file that can be sent: the report, status, versions, settings and the "
    "end of the log, without secrets.",
)
@json_option
def doctor(
    name: str | None,
    verbose: bool,
    offline: bool,
    deep: bool,
    deadline: float,
    bundle: Path | None,
    as_json: bool,
) -> None:
    """Look for what is wrong, and name the command that mends it.

    Checks FUSE, the kernel, libfuse and git, the state root (disk, permissions, databases,
    gitdirs), stored credentials and their expiry, the daemon, every mount, and every remote with
    its clock. With a NAME, of repositories only that one. Changes nothing; needs no daemon. Exits
    with 1 if there is a problem.

    \b
    Examples:
      artifact-fs doctor
      artifact-fs doctor --verbose --offline
      artifact-fs doctor --bundle report.zip
      artifact-fs doctor --json | jq '.findings[] | select(.severity == "problem")'
    """
    import trio

    from artifactfs.doctor.examination import examine
    from artifactfs.doctor.report import STYLES, lines, to_json

    layout = state()
    if name is not None:
        registered(name)

    async def run() -> int:
        report = await examine(
            layout,
            remotes=not offline,
            deep=deep,
            deadline_s=deadline,
            only=name,
        )
        if bundle is not None:
            _write_bundle(bundle, to_json(report))
        if as_json:
            click.echo(to_json(report))
        else:
            for line, severity in lines(report, everything=verbose):
                click.echo(click.style(line, fg=STYLES[severity]) if severity else line)
        return 1 if report.problems else 0

    raise SystemExit(trio.run(run))


def _write_bundle(bundle: Path, report: str) -> None:
    """Without a daemon, or where it does not answer, what the registry knows."""
    from artifactfs.doctor.bundle import write_bundle

    try:
        known = _known()
    except ArtifactFSError as error:
        known = [{"error": error.message}]
    texts = {"doctor.json": report, "status.json": output.json_text(known)}
    names = write_bundle(bundle, state(), texts, configuration_file())
    click.echo(f"{bundle}: {', '.join(names)}", err=True)


def _known() -> list[dict[str, Any]]:
    client = connect()
    if client is None:
        return registered()
    with client:
        repos: list[dict[str, Any]] = client.request("status")
        return repos
