"""``artifact-fs doctor``."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
def doctor(as_json: bool, verbose: bool, offline: bool, deep: bool, deadline: float) -> None:
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
    from artifactfs.paths import StateLayout, default_state_root

    async def run() -> int:
        report = await examine(
            StateLayout(default_state_root()),
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

    sys.exit(trio.run(run))
