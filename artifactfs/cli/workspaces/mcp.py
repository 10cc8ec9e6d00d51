"""``artifact-fs mcp``: one workspace as tools of the Model Context Protocol."""

from __future__ import annotations

import importlib.util
from typing import Any

import click

from artifactfs.cli.workspaces.options import opened, workspace_options
from artifactfs.errors import InvalidInput


@click.command()
@workspace_options
def mcp(**options: Any) -> None:
    """Serve a workspace of REMOTE to a client of the Model Context Protocol.

    Tools: list, read, search, edit, write, run, changes, diff, commit, push, snapshot, restore. It
    speaks on standard input and output, and ends with its input; the workspace then ends as
    --on-exit says. Needs the package mcp: pip install 'artifactfs[mcp]'.

    \b
    Examples:
      artifact-fs mcp https://host/org/hello.git
      artifact-fs mcp https://host/org/hello.git --branch fix --on-exit push
    """
    if importlib.util.find_spec("mcp") is None:
        raise InvalidInput("the package mcp is not installed", hint="pip install 'artifactfs[mcp]'")
    import anyio

    from artifactfs.cli.workspaces.tools import serve

    anyio.run(serve, opened(**options))
