"""``artifact-fs run`` and ``shell``."""

from __future__ import annotations

import os
from typing import Any

import click

from artifactfs.cli.workspaces.options import CommandFailed, opened, workspace_options
from artifactfs.workspaces.running import run_with_terminal
from artifactfs.workspaces.workspace import Workspace

_COMMAND = "artifactfs.command"


class _WithCommand(click.Command):
    """Takes what follows ``--`` for the command, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


@click.command(cls=_WithCommand)
@workspace_options
@click.option("--push", metavar="BRANCH", help="Push its commits to BRANCH if it succeeds.")
def run(push: str | None, **options: Any) -> int:
    """Run a command in a workspace of REMOTE; exits with its code.

    The workspace is a mounted working tree of its own, there within a second. Afterwards, commits
    and files that nobody else has are kept, and a line says how to get them back; where there are
    none, it is removed. REMOTE may also be given by ARTIFACTS_GIT_REMOTE.

    \b
    Examples:
      artifact-fs run https://host/org/hello.git -- make test
      artifact-fs run . --ref v1.0 -- sh -c 'ls | wc -l'
      artifact-fs run https://host/org/hello.git --push fix -- ./agent.sh
    """
    context = click.get_current_context()
    command: list[str] = context.meta.get(_COMMAND, [])
    if not command:
        raise click.UsageError("give the COMMAND after --", context)
    return _in_workspace(command, push=push, **options)


@click.command()
@workspace_options
@click.option("--push", metavar="BRANCH", help="Push its commits to BRANCH at the end.")
def shell(push: str | None, **options: Any) -> int:
    """Work in a workspace of REMOTE with a shell; see `artifact-fs run`.

    \b
    Examples:
      artifact-fs shell https://host/org/hello.git
      artifact-fs shell https://host/org/hello.git --branch fix --on-exit push
    """
    return _in_workspace([os.environ.get("SHELL") or "/bin/sh"], push=push, **options)


def _in_workspace(command: list[str], *, push: str | None, **options: Any) -> int:
    try:
        with opened(**options) as ws:
            code = run_with_terminal(command, cwd=str(ws.path), environment=ws.environment())
            if code != 0:
                raise CommandFailed(code)
            if push is not None:
                _push(ws, push)
    except CommandFailed as failed:
        return failed.code
    return 0


def _push(ws: Workspace, branch: str) -> None:
    if ws.unsaved().commits:
        pushed = ws.push(branch)
        click.echo(f"{ws.name}: pushed {pushed.commit[:12]} to {branch}", err=True)
    else:
        click.echo(f"{ws.name}: no commits to push", err=True)
