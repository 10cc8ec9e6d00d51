"""``artifact-fs wait``."""

from __future__ import annotations

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import Duration, daemon, json_option
from artifactfs.cli.terminal.names import name_option

READY = {
    "mounted": "mounted",
    "hydrated": "hydrated as far as the background goes",
    "history": "there with its whole history",
}


@click.command("wait")
@name_option
@click.option(
    "--for",
    "goal",
    type=click.Choice(list(READY)),
    default="mounted",
    show_default=True,
    help="mounted: the tree can be read; hydrated: the background sweep is done; history: git "
    "log needs the remote no more.",
)
@click.option("--timeout", type=Duration(), help="Give up after so long (exit code 124).")
@json_option
def wait(name: str, goal: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a repository is mounted, hydrated, or has its history.

    \b
    Examples:
      artifact-fs add-repo --name hello --remote URL --async && artifact-fs wait --name hello
      artifact-fs wait --name hello --for hydrated --timeout 5m
    """
    with daemon() as client, output.progress(name, quiet=as_json) as report:
        answer = client.request(
            "wait", on_progress=report, name=name, timeout_s=timeout, **{"for": goal}
        )
    if as_json:
        output.print_json(answer)
    else:
        click.echo(f"{name}: {READY[goal]}")
