"""``artifact-fs diff-overlay`` and ``switch``."""

from __future__ import annotations

import click

from artifactfs.cli.repositories import in_mount
from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import daemon, json_option
from artifactfs.cli.terminal.names import name_argument_or_here_option, name_or_here_option

LETTERS = {"added": "A", "modified": "M", "deleted": "D", "removed": "D"}


@click.command("diff-overlay")
@name_argument_or_here_option
@json_option
def diff_overlay(name: str, as_json: bool) -> None:
    """List how the working tree differs from the mounted commit.

    Unlike `git status` this includes ignored files: it is what the overlay holds. A directory's
    path ends in a slash.

    \b
    Examples:
      artifact-fs diff-overlay --name hello
      artifact-fs diff-overlay --name hello --json
    """
    with daemon() as client:
        changes = client.request("worker", name=name, request="changes")
    if as_json:
        output.print_json(changes)
        return
    for change in changes:
        kind = str(change["kind"])
        click.echo(f"{LETTERS.get(kind, kind)} {output.printable(change['path'])}")


@click.command()
@click.argument("target")
@name_or_here_option
@click.option("--create", "-c", is_flag=True, help="TARGET is a new branch, made at HEAD.")
@click.option("--detach", is_flag=True, help="Do not check out a branch.")
@json_option
def switch(target: str, name: str, create: bool, detach: bool, as_json: bool) -> None:
    """Switch the working tree to a branch or commit, downloading nothing.

    As `git switch`, in the time of the changed directories: local changes are kept, and where
    they are in the way, nothing is switched.

    \b
    Examples:
      artifact-fs switch main --name hello
      artifact-fs switch --create topic --name hello
      artifact-fs switch v2.0 --name hello
    """
    args = {"target": target, "create": create, "detach": detach}
    with daemon() as client, output.progress(name, quiet=as_json) as report:
        answer = client.request(
            "worker", on_progress=report, name=name, request="switch", args=args
        )
        left = answer.pop("left_to_git")
        if left["switch"] is not None:
            failure = in_mount.switch(left["top"], left["switch"])
            status = client.request("status", name=name)[0]
            answer.update(ref=status["ref"], commit=status["head"])
        elif left["hook"] is not None:
            failure = in_mount.run_hook(left["top"], "post-checkout", left["hook"])
        else:
            failure = None
        if failure is not None:
            click.echo(f"warning: post-checkout: {failure}", err=True)
    if as_json:
        output.print_json(answer)
        return
    where = f"branch {answer['ref']}" if answer["ref"] else f"commit {answer['commit'][:12]}"
    changed = answer["changed"]
    paths = "" if changed is None else f", {changed} paths changed"
    click.echo(f"{name}: on {where}{paths}")
