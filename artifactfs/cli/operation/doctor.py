"""``artifact-fs doctor``."""

from __future__ import annotations

import click

from artifactfs.cli.terminal.context import json_option, state


@click.command()
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
@json_option
def doctor(verbose: bool, offline: bool, deep: bool, deadline: float, as_json: bool) -> None:
    """Look for what is wrong, and name the command that mends it.

    Checks FUSE, the kernel, libfuse and git, the state root (disk, permissions, databases,
    gitdirs), stored credentials and their expiry, the daemon, every mount, and every remote with
    its clock. Changes nothing; needs no daemon. Exits with 1 if there is a problem.

    \b
    Examples:
      artifact-fs doctor
      artifact-fs doctor --verbose --offline
      artifact-fs doctor --json | jq '.findings[] | select(.severity == "problem")'
    """
    import trio

    from artifactfs.doctor.examination import examine
    from artifactfs.doctor.report import STYLES, lines, to_json

    layout = state()

    async def run() -> int:
        report = await examine(
            layout,
            remotes=not offline,
            deep=deep,
            deadline_s=deadline,
        )
        if as_json:
            click.echo(to_json(report))
        else:
            for line, severity in lines(report, everything=verbose):
                click.echo(click.style(line, fg=STYLES[severity]) if severity else line)
        return 1 if report.problems else 0

    raise SystemExit(trio.run(run))
