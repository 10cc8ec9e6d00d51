"""``artifact-fs snapshot``: states of a mounted working tree, kept as commits."""

from __future__ import annotations

from dataclasses import asdict

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import daemon, json_option
from artifactfs.cli.terminal.names import name_or_here_option
from artifactfs.errors import DaemonError
from artifactfs.workspaces import snapshots
from artifactfs.workspaces.repository import Repository
from artifactfs.workspaces.results import Snapshot


@click.group()
def snapshot() -> None:
    """Keep states of a working tree, go back to them, and go on with them elsewhere.

    A snapshot has every file, new ones too, but none that git ignores. It is a commit on a ref of
    its own, refs/artifactfs/snapshots/ID; taking one touches neither the index nor HEAD.

    \b
    Examples:
      artifact-fs snapshot create before --name hello
      artifact-fs snapshot restore before --name hello
    """


@snapshot.command()
@click.argument("label", metavar="[ID]", required=False)
@name_or_here_option
@click.option("--message", "-m", default="Snapshot", help="What to call it in its commit.")
@click.option("--push", is_flag=True, help="Give it to the remote as well.")
@json_option
def create(label: str | None, name: str, message: str, push: bool, as_json: bool) -> None:
    """Take a snapshot; its ID is made of the time where none is given.

    \b
    Examples:
      artifact-fs snapshot create
      artifact-fs snapshot create before-refactoring --name hello --push
    """
    repository = _repository(name)
    taken = snapshots.take(repository, label, message)
    if push:
        taken = snapshots.push(repository, taken)
    _show(taken, as_json)


@snapshot.command("list")
@name_or_here_option
@json_option
def list_(name: str, as_json: bool) -> None:
    """List the snapshots that are here, the oldest first.

    \b
    Examples:
      artifact-fs snapshot list --name hello
    """
    found = snapshots.listed(_repository(name))
    if as_json:
        output.print_json([asdict(each) for each in found])
        return
    for each in found:
        click.echo(f"{each.name} {each.commit[:12]}{' pushed' if each.pushed else ''}")


@snapshot.command()
@click.argument("label", metavar="ID")
@name_or_here_option
@json_option
def restore(label: str, name: str, as_json: bool) -> None:
    """Make HEAD and all files those of a snapshot, which is fetched where it is not here.

    What was there before is a snapshot itself, whose ID is printed. Ignored files stay.

    \b
    Examples:
      artifact-fs snapshot restore before-refactoring --name hello
    """
    repository = _repository(name)
    found = snapshots.find(repository, label) or snapshots.fetch(repository, label)
    _show(snapshots.restore(repository, found), as_json)


def _repository(name: str) -> Repository:
    with daemon() as client:
        status = client.request("status", name=name)[0]
    if status["state"] != "mounted":
        raise DaemonError(f"{name} is not mounted", hint=f"artifact-fs remount --name {name}")
    return Repository(status["mount_point"])


def _show(taken: Snapshot, as_json: bool) -> None:
    if as_json:
        output.print_json(asdict(taken))
    else:
        click.echo(taken.name)
